package server

import (
	"context"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/pipeline"
)

// Capture implements api.Templates: the daemon in the sandbox archives what it sees, and
// the pipeline treats that like any archive.
func (t templates) Capture(ctx context.Context, orgID string, req api.CaptureTemplate) (api.Queued, error) {
	sb, err := t.sandboxes.Get(ctx, orgID, req.Sandbox)
	if err != nil {
		return api.Queued{}, err
	}
	v, err := t.store.Version(ctx, sb.TemplateID, sb.Version)
	if err != nil {
		return api.Queued{}, err
	}
	g, err := t.sandboxes.Manager.Guest(ctx, sb.ID)
	if err != nil {
		return api.Queued{}, notRunning(err)
	}
	root, err := g.Root(ctx)
	if err != nil {
		return api.Queued{}, err
	}
	defer root.Close()
	metadata := v.Metadata
	metadata.Name, metadata.Build = req.Name, kiln.MetadataBuild{}
	if req.Description != "" {
		metadata.Description = req.Description
	}
	return queued(t.Service.Create(ctx, orgID, pipeline.NewTemplate{
		Name: req.Name, Context: root, Replace: req.Replace, Metadata: metadata,
		Capture: &kiln.CaptureSource{Sandbox: sb.ID, Template: sb.Template, Version: sb.Version, Config: v.Config},
	}))
}
