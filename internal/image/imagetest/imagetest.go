// Package imagetest gives other packages' tests a real image stage, with a base image
// that is made once per machine.
package imagetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/image"
	"github.com/kilnvm/kiln/internal/image/base"
	"github.com/kilnvm/kiln/internal/image/builder"
	"github.com/kilnvm/kiln/internal/testkit"
)

// BaseImage is there in every [Options] folder of images: tests build FROM it.
const BaseImage = "debian:bookworm-slim"

// RunChild must be called first in the TestMain of a package whose tests build images:
// the builder process is the test program, started again.
func RunChild() {
	if len(os.Args) > 1 && os.Args[1] == builder.ChildArg {
		os.Exit(image.ChildMain(os.Args[2:]))
	}
}

// Options returns options with a state folder that no other test uses meanwhile, the
// shared folder of base images with [BaseImage] in it, and [Walk]. State is kept between
// tests, so that the base image need not be unpacked anew: a test to which it matters
// that steps run, and not come from the build cache, sets BuildOptions.NoCache.
func Options(t testing.TB) image.Options {
	t.Helper()
	testkit.RequireRoot(t)
	testkit.RequireCommands(t, "runc", "mmdebstrap", "unshare")
	opts := options(stateDir(t))
	makeBase(t, opts)
	return opts
}

func options(stateDir string) image.Options {
	return image.Options{
		StateDir:   stateDir,
		ImagesDir:  filepath.Join(testkit.CacheDir(), "images"),
		CABundle:   image.CABundleAuto,
		CacheBytes: cacheBytes,
		Walk:       Walk,
	}
}

// cacheBytes bounds what one state folder keeps.
const cacheBytes = 2 << 30

// stateDir returns the first state folder in the test cache that is free, and keeps it
// for the rest of the test.
func stateDir(t testing.TB) string {
	t.Helper()
	for i := 0; ; i++ {
		dir := filepath.Join(testkit.CacheDir(), fmt.Sprintf("builder-%d", i))
		lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			t.Cleanup(func() { lock.Close() })
			return dir
		}
		lock.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			t.Fatalf("lock %s: %v", dir, err)
		}
	}
}

// Base makes [BaseImage] unless the test cache has it. It never asks a registry: tests must
// mean the same everywhere.
func Base(t testing.TB) {
	t.Helper()
	makeBase(t, options(t.TempDir()))
}

func makeBase(t testing.TB, opts image.Options) {
	t.Helper()
	b, err := image.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(bootstrap(t.Context(), opts.ImagesDir, b, log{t}), b.Close()); err != nil {
		t.Fatalf("make %s: %v", BaseImage, err)
	}
}

// bootstrap makes the base image unless it is there.
func bootstrap(ctx context.Context, imagesDir string, b *image.Builder, progress kiln.Progress) error {
	store, err := base.OpenStore(imagesDir)
	if err != nil {
		return err
	}
	name, err := base.ParseName(BaseImage)
	if err != nil {
		return err
	}
	unlock, err := store.Lock(ctx, "-test")
	if err != nil {
		return err
	}
	defer unlock()
	if _, ok, err := store.Find(name); ok || err != nil {
		return err
	}
	_, err = b.Bootstrap(ctx, BaseImage, progress)
	return err
}

// Builder returns an image stage that ends with the test.
func Builder(t testing.TB) *image.Builder {
	t.Helper()
	b, err := image.New(Options(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close builder: %v", err)
		}
	})
	return b
}

// Source writes files into a new context folder and returns it as a source. Names map
// to content; a Dockerfile must be among them.
func Source(t testing.TB, files map[string]string) kiln.Source {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644))
		if err != nil {
			t.Fatal(err)
		}
	}
	return kiln.Source{Dir: dir, DisplayName: "Dockerfile", Digest: kiln.DigestOf([]byte(dir))}
}

// log is a progress that writes to the test's log.
type log struct{ t testing.TB }

func (l log) Log(_ kiln.Stage, line string) { l.t.Log(line) }
