package server

import (
	"context"
	"fmt"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/catalog"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/config"
	"github.com/kilnvm/kiln/internal/pipeline"
)

// registerCatalog tells the pipeline which templates are built in. Their builds go on in
// the background.
func (n *node) registerCatalog(ctx context.Context, cfg config.Catalog) error {
	var list []pipeline.BuiltIn
	for _, t := range catalog.Templates() {
		archive, err := catalog.Context(t.Name)
		if err != nil {
			return err
		}
		list = append(list, pipeline.BuiltIn{Name: t.Name, Aliases: t.Aliases, Context: archive})
	}
	if err := n.pipeline.RegisterBuiltIns(ctx, list, cfg.Build); err != nil {
		return fmt.Errorf("built-in templates: %w", err)
	}
	return nil
}

// BuildBuiltIn implements api.Templates.
func (t templates) BuildBuiltIn(ctx context.Context, req api.NewVersion) (api.Queued, error) {
	return queued(t.Service.BuildBuiltIn(ctx, pipeline.Rebuild(req)))
}

// onFirstUse starts the build of a built-in template for which a sandbox was refused, and
// says so in place of the refusal.
func (s sandboxes) onFirstUse(ctx context.Context, orgID, template string, refusal error) error {
	if kiln.CodeOf(refusal) != kiln.CodeConflict {
		return refusal
	}
	t, err := s.catalog.BuildOnUse(ctx, orgID, template)
	if err != nil || t == nil {
		return refusal
	}
	return &api.FirstUse{
		Template: t.Name,
		Refusal: kiln.Errorf(kiln.CodeConflict, "template %q is built on its first use, and its build has begun", t.Name).
			WithHint("try again when it is ready; `kiln templates logs -f %s` follows the build", t.Name),
	}
}
