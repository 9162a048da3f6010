package api

import (
	"context"

	"github.com/kilnvm/kiln"
)

func (f *fakeTemplates) Capture(_ context.Context, org string, req CaptureTemplate) (Queued, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if req.Sandbox != "ibox" {
		return Queued{}, kiln.Errorf(kiln.CodeNotFound, "sandbox %q does not exist", req.Sandbox)
	}
	t := &kiln.Template{ID: kiln.NewTemplateID(), OrgID: org, Name: req.Name}
	f.byName[req.Name] = t
	f.next(t, kiln.Metadata{Description: req.Description})
	return Queued{Template: t, Version: t.Latest}, nil
}

func (f *fakeTemplates) UpdateQuota(_ context.Context, _, ref string, change func(*kiln.Quota)) (*kiln.Template, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.byName[ref]
	if t == nil {
		return nil, kiln.Errorf(kiln.CodeNotFound, "template %q does not exist", ref)
	}
	change(&t.Quota)
	return t, t.Quota.Limits.Validate()
}
