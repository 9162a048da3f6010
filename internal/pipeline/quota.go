package pipeline

import (
	"context"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/source"
)

// UpdateQuota changes what new sandboxes of a template get, without a build: running ones
// keep what they have.
func (s *Service) UpdateQuota(ctx context.Context, orgID, ref string, change func(*kiln.Quota)) (*kiln.Template, error) {
	name, err := kiln.ParseWholeTemplate(ref, "templates update-quota", "a quota holds for all versions")
	if err != nil {
		return nil, err
	}
	return s.opts.Store.UpdateQuota(ctx, orgID, name, func(q kiln.Quota) (kiln.Quota, error) {
		change(&q)
		return q, source.CheckMetadata(kiln.Metadata{DiskMB: q.DiskMB, Limits: q.Limits})
	})
}
