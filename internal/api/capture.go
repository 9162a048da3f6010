package api

import (
	"context"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kilnvm/kiln"
)

// CaptureTemplate asks for a template made of a running sandbox.
type CaptureTemplate struct {
	Name        string
	Sandbox     string
	Description string // "" keeps that of the sandbox's template
	Replace     bool   // make the next version if the name exists
}

// CaptureRequest is the body of a capture.
type CaptureRequest struct {
	_           struct{} `additionalProperties:"true"`
	Name        string   `json:"name" doc:"The template's name"`
	Sandbox     string   `json:"sandbox" doc:"ID of a running sandbox; a paused one is woken"`
	Description string   `json:"description,omitempty" doc:"Default: that of the sandbox's template"`
	Replace     bool     `json:"replace,omitempty" doc:"Make the next version if the name exists"`
}

// QuotaRequest changes a quota; what it leaves out stays. 0 gives a field back to what the
// version says.
type QuotaRequest struct {
	_             struct{} `additionalProperties:"true"`
	DiskMB        *int     `json:"disk_size_mb,omitempty" doc:"Writable disk of new sandboxes in MiB"`
	BandwidthMBps *int     `json:"bandwidth_mbps,omitempty" doc:"Disk traffic of a sandbox in MiB per second"`
	OpsPerSec     *int     `json:"ops_per_sec,omitempty" doc:"Disk operations of a sandbox per second"`
	BurstMBps     *int     `json:"burst_mbps,omitempty" doc:"Disk traffic for up to a second after a pause"`
	BurstOps      *int     `json:"burst_ops,omitempty" doc:"Disk operations for up to a second after a pause"`
}

// quotaField is a key of a request, its value or nil, and the value in the quota.
type quotaField struct {
	key  string
	from *int
	to   *int
}

func (r *QuotaRequest) fields(q *kiln.Quota) []quotaField {
	return []quotaField{
		{"disk_size_mb", r.DiskMB, &q.DiskMB}, {"bandwidth_mbps", r.BandwidthMBps, &q.Limits.BandwidthMBps},
		{"ops_per_sec", r.OpsPerSec, &q.Limits.OpsPerSec}, {"burst_mbps", r.BurstMBps, &q.Limits.BurstMBps},
		{"burst_ops", r.BurstOps, &q.Limits.BurstOps},
	}
}

// check refuses a request that changes nothing: unknown keys are let pass, so that a
// misspelt one would look as if it had been obeyed.
func (r *QuotaRequest) check() error {
	var keys []string
	for _, f := range r.fields(&kiln.Quota{}) {
		if f.from != nil {
			return nil
		}
		keys = append(keys, f.key)
	}
	return kiln.Errorf(kiln.CodeInvalid, "the quota request changes nothing").WithHint("give at least one of %s", strings.Join(keys, ", "))
}

// apply changes q as the request says.
func (r *QuotaRequest) apply(q *kiln.Quota) {
	for _, f := range r.fields(q) {
		if f.from != nil {
			*f.to = *f.from
		}
	}
}

// note records what the request changed.
func (r *QuotaRequest) note(ctx context.Context) {
	for _, f := range r.fields(&kiln.Quota{}) {
		if f.from != nil {
			note(ctx, f.key, strconv.Itoa(*f.from))
		}
	}
}

type (
	captureInput struct{ Body CaptureRequest }
	quotaInput   struct {
		TemplateName
		Body QuotaRequest
	}
	quotaOutput struct{ Body kiln.Quota }
)

func (s *Server) registerCapture() {
	tags := []string{"templates"}
	register(s, route{Operation: huma.Operation{
		OperationID: "captureTemplate", Method: http.MethodPost, Path: "/v1/templates/capture", Tags: tags,
		Summary: "Make a template of the file system of a running sandbox", DefaultStatus: http.StatusAccepted,
	}, unbounded: true}, s.captureTemplate)
	register(s, route{Operation: huma.Operation{
		OperationID: "updateTemplateQuota", Method: http.MethodPatch, Path: "/v1/templates/{name}/quota", Tags: tags,
		Summary: "Change disk size and disk traffic of new sandboxes, without a build",
	}}, s.updateQuota)
}

func (s *Server) captureTemplate(ctx context.Context, in *captureInput) (*buildOutput, error) {
	// Whoever has the template reads every file of the sandbox.
	if err := callerOf(ctx).require(kiln.ScopeSandboxesRead); err != nil {
		return nil, err
	}
	if in.Body.Name == "" {
		return nil, kiln.Errorf(kiln.CodeInvalid, "the template has no name")
	}
	if err := checkNewName(in.Body.Name); err != nil {
		return nil, err
	}
	queued, err := s.opts.Templates.Capture(ctx, orgOf(ctx), CaptureTemplate{
		Name: in.Body.Name, Sandbox: in.Body.Sandbox, Description: in.Body.Description, Replace: in.Body.Replace,
	})
	if err != nil {
		return nil, err
	}
	note(ctx, "sandbox", in.Body.Sandbox)
	return queued.output(ctx, s.opts.Sizes), nil
}

func (s *Server) updateQuota(ctx context.Context, in *quotaInput) (*quotaOutput, error) {
	if err := in.Body.check(); err != nil {
		return nil, err
	}
	t, err := s.opts.Templates.UpdateQuota(ctx, orgOf(ctx), in.Name, in.Body.apply)
	if err != nil {
		return nil, err
	}
	in.Body.note(ctx)
	return &quotaOutput{Body: t.Quota}, nil
}
