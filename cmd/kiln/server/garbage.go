package server

import (
	"context"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/config"
	"github.com/kilnvm/kiln/internal/gc"
)

// startCollecting makes the collector and lets it run from time to time until the node is
// closed.
func (n *node) startCollecting(cfg config.Config, snapshotKey func(kiln.VMSpec) kiln.Digest) (err error) {
	sizes := cfg.SizeTable()
	n.garbage, err = gc.New(gc.Options{
		Store: n.store, Blobs: n.blobs, Logs: n.pipeline, Log: n.log,
		Policy: gc.Policy{Keep: cfg.GC.Keep, SandboxHistory: time.Duration(cfg.GC.SandboxHistory), AuditHistory: time.Duration(cfg.GC.AuditHistory)},
		SnapshotKey: func(v *kiln.Version, name string) (kiln.Digest, error) {
			size, err := sizes.ByName(name)
			if err != nil {
				return "", err
			}
			return snapshotKey(v.VMSpec(size)), nil
		},
	})
	if err != nil || cfg.GC.Every == 0 {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	n.stopCollecting = stop
	n.collecting.Go(func() { n.garbage.Loop(ctx, time.Duration(cfg.GC.Every)) })
	return nil
}
