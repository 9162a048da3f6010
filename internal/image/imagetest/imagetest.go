// Package imagetest gives other packages' tests a real image stage, with a base image
// that is made once per machine.
package imagetest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

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

// Options returns options with a fresh state folder, the shared folder of base images
// with [BaseImage] in it, and [Walk].
func Options(t testing.TB) image.Options {
	t.Helper()
	testkit.RequireRoot(t)
	testkit.RequireCommands(t, "runc", "mmdebstrap", "unshare")
	opts := image.Options{
		StateDir:  t.TempDir(),
		ImagesDir: filepath.Join(testkit.CacheDir(), "images"),
		CABundle:  image.CABundleAuto,
		Walk:      Walk,
	}
	b, err := image.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := ensureBase(t.Context(), opts.ImagesDir, b, log{t}); err != nil {
		t.Fatalf("make %s: %v", BaseImage, err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	return opts
}

// ensureBase bootstraps the base image unless it is there. It never asks a registry:
// tests must mean the same everywhere.
func ensureBase(ctx context.Context, imagesDir string, b *image.Builder, progress kiln.Progress) error {
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
