package server

import (
	"context"

	"github.com/kilnvm/kiln/internal/network"
	"github.com/kilnvm/kiln/internal/store"
)

// newNetwork makes the connections of sandboxes, or nil when the configuration has none.
func newNetwork(ctx context.Context, opts Options, dir *dataDir, st *store.Store) (*network.Pool, error) {
	if !opts.Config.Network.Enabled {
		return nil, nil
	}
	return network.New(ctx, network.Options{
		Store: st, DataDir: dir.path, Settings: opts.Config.Network.Settings(), Log: opts.Log,
	})
}
