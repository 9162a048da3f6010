package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/util/entitlements"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/image/base"
	"github.com/kilnvm/kiln/internal/image/builder"
)

// local builds in the child process and reads the mounted result.
type local struct {
	child
	walk func(dir *os.File) (kiln.EntrySource, error)
}

func newLocal(opts Options) (*local, error) {
	stateDir, err := filepath.Abs(opts.StateDir)
	if err != nil {
		return nil, err
	}
	cfg := builder.Config{StateDir: stateDir, CABundle: opts.CABundle, CacheBytes: opts.CacheBytes}
	return &local{child: child{cfg: cfg, idle: opts.IdleTimeout}, walk: opts.Walk}, nil
}

func (l *local) solve(ctx context.Context, bases []base.Image, run func(context.Context, target) error) (kiln.EntrySource, error) {
	process, release, err := l.acquire(ctx)
	if err != nil {
		return nil, err
	}
	result := process.Expect(identity.NewID())
	err = run(ctx, target{
		client: process.Client(),
		export: client.ExportEntry{Type: builder.ExporterName, Attrs: result.Attrs()},
		bases:  layoutContexts(bases),
		// RUN --network=host is what RUN means in the child anyway.
		entitlements: []string{string(entitlements.EntitlementNetworkHost)},
	})
	var root kiln.EntrySource
	if err != nil {
		err = process.Explain(err)
	} else {
		root, err = l.read(ctx, result)
	}
	if err != nil {
		err = errors.Join(err, result.Release())
		release()
		return nil, err
	}
	return &heldSource{EntrySource: root, release: func() error {
		defer release()
		return result.Release()
	}}, nil
}

// read turns a finished result into entries.
func (l *local) read(ctx context.Context, result *builder.Result) (kiln.EntrySource, error) {
	dir, err := result.Dir(ctx)
	if err != nil {
		return nil, err
	}
	root, err := l.walk(dir)
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return root, nil
}

// heldSource releases what an entry source lives on once it is closed.
type heldSource struct {
	kiln.EntrySource
	release func() error
}

func (s *heldSource) Close() error { return errors.Join(s.EntrySource.Close(), s.release()) }
