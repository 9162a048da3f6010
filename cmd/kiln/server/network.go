package server

import (
	"context"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/network"
	"github.com/kilnvm/kiln/internal/sandbox"
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

// networks is the manager as the API wants it: each organisation sees its own sandboxes.
type networks struct{ *sandbox.Manager }

// own returns an error unless the sandbox is the organisation's.
func (n networks) own(ctx context.Context, orgID, id string) (*kiln.Sandbox, error) {
	return sandboxes{Manager: n.Manager}.Get(ctx, orgID, id)
}

// SetEgress implements api.Networks.
func (n networks) SetEgress(ctx context.Context, orgID, id string, policy kiln.EgressPolicy) (*kiln.Sandbox, error) {
	if _, err := n.own(ctx, orgID, id); err != nil {
		return nil, err
	}
	return n.Manager.SetEgress(ctx, id, policy)
}

// NetworkUse implements api.Networks.
func (n networks) NetworkUse(ctx context.Context, orgID, id string) (kiln.NetworkUse, error) {
	if _, err := n.own(ctx, orgID, id); err != nil {
		return kiln.NetworkUse{}, err
	}
	return n.Manager.NetworkUse(ctx, id)
}

// Denials implements api.Networks.
func (n networks) Denials(ctx context.Context, orgID, id string) ([]kiln.Denial, error) {
	if _, err := n.own(ctx, orgID, id); err != nil {
		return nil, err
	}
	return n.Manager.Denials(ctx, id)
}
