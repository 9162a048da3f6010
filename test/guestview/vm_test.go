package main

import (
	"context"
	"iter"
	"os"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/image"
	"github.com/kilnvm/kiln/internal/image/imagetest"
	"github.com/kilnvm/kiln/internal/rootfs"
	"github.com/kilnvm/kiln/internal/rootfs/rootfstest"
	"github.com/kilnvm/kiln/internal/testkit"
)

// both has the entries of two sources, those of the second winning.
type both struct{ a, b kiln.EntrySource }

func (s both) Entries() iter.Seq2[kiln.Entry, error] {
	return func(yield func(kiln.Entry, error) bool) {
		for _, src := range []kiln.EntrySource{s.a, s.b} {
			for e, err := range src.Entries() {
				if !yield(e, err) {
					return
				}
			}
		}
	}
}

func (both) Close() error { return nil }

// minimalTree is what a guest needs to run this program.
func minimalTree(t testing.TB) kiln.EntrySource {
	t.Helper()
	tree := t.TempDir()
	testkit.MinimalTree(t, tree)
	if err := os.WriteFile(tree+program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(tree)
	if err != nil {
		t.Fatal(err)
	}
	src, err := rootfs.FromDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

// Every entry that a VM sees of its root disk must be the entry that the image was made
// of, for a tree with everything that ext4 can hold.
func TestHazard21GuestSeesWhatWasGiven(t *testing.T) {
	testkit.RequireVM(t)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	threeViews(ctx, t, build(t), both{minimalTree(t), rootfstest.Stress()})
}

// realImages are five targets, from what others publish to what nobody does on purpose.
const realImages = `
FROM debian:trixie-slim AS trixie
FROM debian:bookworm-slim AS bookworm

FROM bookworm AS python
RUN apt-get update && apt-get install -y --no-install-recommends python3-minimal libpython3-stdlib

FROM python AS features
RUN <<SCRIPT
set -e
mkdir -p /features/many /features/deep/$(seq -s / 1 60) /features/sgid
cd /features
echo x > setuid; chown 100000:200000 setuid; chmod 6755 setuid
chmod 2775 sgid; chmod 1777 many
for i in $(seq 2000); do echo $i > many/$i; done
ln setuid hard; ln -s setuid soft; ln soft soft-again
ln -s $(printf 'long/%.0s' $(seq 100)) long-symlink
truncate -s 5G /sparse; echo end >> /sparse   # not in /features: COPY fills holes
mkfifo fifo; mknod char c 1 3; mknod block b 300 70000
touch $(printf 'n%.0s' $(seq 255))
SCRIPT
RUN python3 - <<'SCRIPT'
import os, struct
os.chdir(b"/features")
open(b"not\xff\xfeutf-8\n", "w").close()
open("attributes", "w").close()
os.setxattr("attributes", "security.capability", struct.pack("<5I", 0x2000001, 0x400, 0, 0, 0))
os.setxattr("attributes", "user.note", b"v" * 1500)
acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in (
    (1, 7, 0xffffffff), (2, 5, 70000), (4, 5, 0xffffffff), (0x10, 7, 0xffffffff), (0x20, 4, 0xffffffff)))
for kind in "access", "default":
    os.setxattr("sgid", "system.posix_acl_" + kind, acl)
for i, s in enumerate((-1 << 31, -1, 1 << 31, 1 << 32, 4102444800, 9999999999)):
    open("time%d" % i, "w").close()
    os.utime("time%d" % i, ns=(s * 10**9 + 123456789,) * 2)
SCRIPT

FROM scratch AS nothing-else
COPY --from=features /features /features
COPY --from=features /usr/bin/true /usr/bin/true
`

func TestHazard21RealImages(t *testing.T) {
	testkit.RequireVM(t)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	guestview := build(t)
	opts := imagetest.Options(t)
	opts.Walk = rootfs.FromDir
	builder, err := image.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := builder.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, target := range []string{"bookworm", "trixie", "python", "features", "nothing-else"} {
		t.Run(target, func(t *testing.T) {
			src := imagetest.Source(t, map[string]string{"Dockerfile": realImages})
			src.Options = kiln.BuildOptions{Target: target}
			bases, err := builder.Resolve(ctx, src, kiln.DiscardProgress)
			if err != nil {
				t.Fatal(err)
			}
			img, err := builder.Build(ctx, src, bases, kiln.DiscardProgress)
			if err != nil {
				t.Fatal(err)
			}
			defer img.Close()
			threeViews(ctx, t, guestview, img.Root)
		})
	}
}
