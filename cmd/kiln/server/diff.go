package server

import (
	"context"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/artifact"
	"github.com/kilnvm/kiln/internal/rootfs"
)

// diffs compares versions through the reader of root filesystems.
type diffs struct {
	versions resolver
	blobs    *artifact.Blobs
}

// resolver finds what a reference means: store.Store.
type resolver interface {
	ResolveTemplate(ctx context.Context, orgID string, ref kiln.TemplateRef) (*kiln.Template, *kiln.Version, error)
}

// Diff implements api.Diffs.
func (d diffs) Diff(ctx context.Context, orgID string, a, b kiln.TemplateRef) (*api.RootfsDiff, error) {
	out := &api.RootfsDiff{Differences: []api.RootfsDifference{}}
	var err error
	if out.A, err = d.find(ctx, orgID, a); err != nil {
		return nil, err
	}
	if out.B, err = d.find(ctx, orgID, b); err != nil {
		return nil, err
	}
	if out.A.Digest == out.B.Digest {
		return out, nil
	}
	list, err := rootfs.Diff(ctx, d.blobs.Path(out.A.Digest), d.blobs.Path(out.B.Digest))
	if err != nil {
		return nil, err
	}
	for _, x := range list {
		out.Differences = append(out.Differences, api.RootfsDifference(x))
	}
	return out, nil
}

// find returns the root filesystem of the version that a reference means.
func (d diffs) find(ctx context.Context, orgID string, ref kiln.TemplateRef) (api.RootfsOf, error) {
	t, v, err := d.versions.ResolveTemplate(ctx, orgID, ref)
	if err != nil {
		return api.RootfsOf{}, err
	}
	if v == nil {
		return api.RootfsOf{}, kiln.Errorf(kiln.CodeConflict, "template %q has no ready version", t.Name)
	}
	if !d.blobs.Has(v.Rootfs) {
		return api.RootfsOf{}, kiln.Errorf(kiln.CodeUnavailable, "the root filesystem of %s@%d is not on this node", t.Name, v.Number)
	}
	return api.RootfsOf{Template: t.Name, Version: v.Number, Digest: v.Rootfs.Digest}, nil
}
