package api

import (
	"context"
	"net/http"
	"strconv"

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
	Sandbox     string   `json:"sandbox" doc:"ID of a running sandbox"`
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

// apply changes q as the request says.
func (r *QuotaRequest) apply(q *kiln.Quota) {
	for _, f := range []struct{ from, to *int }{
		{r.DiskMB, &q.DiskMB}, {r.BandwidthMBps, &q.Limits.BandwidthMBps}, {r.OpsPerSec, &q.Limits.OpsPerSec},
		{r.BurstMBps, &q.Limits.BurstMBps}, {r.BurstOps, &q.Limits.BurstOps},
	} {
		if f.from != nil {
			*f.to = *f.from
		}
	}
}

// note records what the request changed.
func (r *QuotaRequest) note(ctx context.Context) {
	for key, value := range map[string]*int{
		"disk_size_mb": r.DiskMB, "bandwidth_mbps": r.BandwidthMBps, "ops_per_sec": r.OpsPerSec,
		"burst_mbps": r.BurstMBps, "burst_ops": r.BurstOps,
	} {
		if value != nil {
			note(ctx, key, strconv.Itoa(*value))
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
	note(ctx, "template", queued.Template.Name)
	note(ctx, "version", strconv.Itoa(queued.Version.Number))
	return queued.output(s.opts.Sizes), nil
}

func (s *Server) updateQuota(ctx context.Context, in *quotaInput) (*quotaOutput, error) {
	t, err := s.opts.Templates.UpdateQuota(ctx, orgOf(ctx), in.Name, in.Body.apply)
	if err != nil {
		return nil, err
	}
	in.Body.note(ctx)
	return &quotaOutput{Body: t.Quota}, nil
}
