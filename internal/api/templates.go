package api

import (
	"context"
	"encoding/json"
	"io"
	"iter"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kilnvm/kiln"
)

// Templates is the template pipeline as the API needs it. Every method sees only what
// the organisation may see: what belongs to another does not exist.
type Templates interface {
	// Create stores the build context and queues version 1 of a new template, or, with
	// req.Replace, the next version of an existing one.
	Create(ctx context.Context, orgID string, req NewTemplate) (Queued, error)
	// Rebuild queues the next version from the context and options of the newest one.
	Rebuild(ctx context.Context, orgID string, req NewVersion) (Queued, error)
	// BuildBuiltIn builds a built-in template now if its newest version is not ready, or if
	// the request has NoCache or Pull.
	BuildBuiltIn(ctx context.Context, req NewVersion) (Queued, error)
	// Capture queues a version of a template made of a running sandbox's file system.
	Capture(ctx context.Context, orgID string, req CaptureTemplate) (Queued, error)
	// UpdateQuota changes what new sandboxes of a template get.
	UpdateQuota(ctx context.Context, orgID, ref string, change func(*kiln.Quota)) (*kiln.Template, error)
	List(ctx context.Context, orgID string) ([]*kiln.Template, error)
	// Get returns a template and its versions, newest first, or the one that ref pins.
	Get(ctx context.Context, orgID, ref string) (*kiln.Template, []*kiln.Version, error)
	Delete(ctx context.Context, orgID, ref string) error
	// Build returns one version by its build ID, with its template.
	Build(ctx context.Context, orgID, buildID string) (*kiln.Template, *kiln.Version, error)
	// Cancel stops a queued or running build. One that has ended is a conflict.
	Cancel(ctx context.Context, orgID, buildID string) error
	// Logs yields the lines of a build from an offset that an earlier LogLine gave, 0
	// being the first. With follow it waits for more until the build has ended.
	Logs(ctx context.Context, orgID, buildID string, offset int64, follow bool) iter.Seq2[LogLine, error]
}

// NewTemplate asks for a template.
type NewTemplate struct {
	Name    string
	Context io.Reader // a tar archive, plain or gzip; nil with Git
	// Git is where the context is to be fetched from, with GitCredentials if need be.
	Git            *kiln.GitSource
	GitCredentials kiln.GitCredentials
	// Image says that Context is nothing but a FROM line with this image.
	Image string
	// Capture says that Context is the root filesystem of a sandbox.
	Capture  *kiln.CaptureSource
	Options  kiln.BuildOptions
	Metadata kiln.Metadata // what the request says; it wins over the context's file
	Replace  bool
	Keep     bool // make the next version, with what the last request said
}

// NewVersion asks for the next version of a template.
type NewVersion struct {
	Template string // reference
	NoCache  bool
	Pull     bool
	// Secrets are needed again, because those of the first build were not kept.
	Secrets        map[string][]byte
	GitCredentials kiln.GitCredentials // needed again, too
}

// Queued is the answer to a request for a build.
type Queued struct {
	Template *kiln.Template
	// Version is the new version, or the promoted one if Unchanged.
	Version *kiln.Version
	// Unchanged tells that a build would change nothing, so that none was queued.
	Unchanged bool
	Warnings  []string
}

func (q Queued) output(ctx context.Context, sizes kiln.SizeTable) *buildOutput {
	note(ctx, "template", q.Template.Name)
	note(ctx, "version", strconv.Itoa(q.Version.Number))
	changed(ctx, !q.Unchanged)
	b := buildOf(sizes, q.Template, q.Version)
	b.Unchanged, b.Warnings = q.Unchanged, q.Warnings
	return &buildOutput{Body: b}
}

// LogLine is one record of a build's log: a line, unless its kind is event or begin.
type LogLine struct {
	// Next is the offset that follows this line.
	Next  int64      `json:"next" doc:"Offset to continue from after this line"`
	Time  time.Time  `json:"time"`
	Stage kiln.Stage `json:"stage" enum:"source,image,rootfs,snapshot,promote"`
	Line  string     `json:"line"`
	// Kind, Event and Result are for displays; whoever wants the text needs none of them.
	Kind   kiln.LogKind      `json:"kind,omitempty" enum:"step,event,begin"`
	Event  json.RawMessage   `json:"event,omitempty" doc:"BuildKit's SolveStatus"`
	Result *kiln.StageResult `json:"result,omitempty" doc:"Of the line that ends a stage"`
}

// Template is a template as it is listed. The fields from RootfsPath on are those that
// only PandaStack's client knows.
type Template struct {
	ID          string             `json:"id" example:"tmpl_abcdefghijklmnopqrst"`
	Name        string             `json:"name" example:"my-ml"`
	Status      kiln.VersionStatus `json:"status" enum:"pending,building,ready,failed"`
	Version     int                `json:"version" doc:"The promoted version; 0 before the first success"`
	BuiltIn     bool               `json:"built_in"`
	Description string             `json:"description"`
	Author      string             `json:"author,omitempty"`
	Icon        string             `json:"icon,omitempty"`
	Tags        []string           `json:"tags,omitempty"`
	Latest      Build              `json:"latest" doc:"The newest version, whatever became of it"`
	BuildError  *kiln.BuildError   `json:"build_error,omitempty" doc:"Why the newest version failed"`
	DefaultSize string             `json:"default_size,omitempty"`
	Quota       *kiln.Quota        `json:"quota,omitempty" doc:"What holds for all versions"`
	CreatedAt   time.Time          `json:"created_at"`
	UpdatedAt   time.Time          `json:"updated_at"`

	RootfsPath string `json:"rootfs_path" doc:"Digest of the root filesystem"`
	SizeBytes  int64  `json:"size_bytes" doc:"Size of the root filesystem"`
	CPU        int    `json:"cpu" doc:"vCPUs of the default size"`
	MemoryMB   int    `json:"memory_mb" doc:"Memory of the default size in MiB"`
	IsGlobal   bool   `json:"is_global" doc:"Same as built_in"`
	Label      string `json:"label,omitempty"`
	Base       string `json:"base,omitempty" doc:"Name of the first base image"`
}

// TemplateDetail is a template with all its versions.
type TemplateDetail struct {
	Template
	Versions []*kiln.Version `json:"versions" doc:"Newest first, or the one that the request pins"`
	Pinned   int             `json:"pinned,omitempty" doc:"The version that the request pins"`
	Recipe   int             `json:"recipe" doc:"The version that was asked for last: a rebuild starts from its source"`
}

func templateOf(sizes kiln.SizeTable, t *kiln.Template) Template {
	out := Template{
		ID: t.ID, Name: t.Name, Status: t.Status(), Version: t.Current, BuiltIn: t.BuiltIn, Description: t.Description,
		Author: t.Author, Icon: t.Icon, Tags: t.Tags, CreatedAt: t.CreatedAt, UpdatedAt: t.UpdatedAt, IsGlobal: t.BuiltIn,
	}
	if t.Quota != (kiln.Quota{}) {
		out.Quota = &t.Quota
	}
	if t.Latest == nil {
		return out
	}
	v := t.Latest
	out.Latest = buildOf(sizes, t, v)
	out.BuildError = v.BuildError
	if t.Serving != nil {
		v = t.Serving // what sandboxes get, not what is being built or failed
	}
	out.describe(sizes, v)
	return out
}

// describe fills in what a version says about the template.
func (t *Template) describe(sizes kiln.SizeTable, v *kiln.Version) {
	t.RootfsPath, t.SizeBytes = string(v.Rootfs.Digest), v.Rootfs.Size
	t.DefaultSize = v.DefaultSize()
	if size, err := sizes.ByName(t.DefaultSize); err == nil {
		t.CPU, t.MemoryMB = size.VCPUs, size.MemoryMiB
	}
	t.Base = ""
	if len(v.BaseImages) > 0 {
		t.Base = v.BaseImages[0].Name
	}
}

// TemplateName is the path parameter of everything about one template.
type TemplateName struct {
	Name string `path:"name" doc:"ID or name; pinned as name:tag or name@3 where one version is meant" example:"my-ml"`
}

type (
	templateOutput struct{ Body TemplateDetail }
	rebuildInput   struct {
		TemplateName
		Body *RebuildRequest
	}
	builtInInput struct {
		TemplateName
		Body *BuiltInRequest
	}
	buildOutput struct{ Body Build }
)

// RebuildRequest is the optional body of a rebuild.
type RebuildRequest struct {
	_       struct{}          `additionalProperties:"true"`
	NoCache bool              `json:"no_cache,omitempty" doc:"Run every step again"`
	Pull    bool              `json:"pull,omitempty" doc:"Ask for newer base images"`
	Secrets map[string][]byte `json:"secrets,omitempty" doc:"Values of RUN --mount=type=secret by id; never stored"`
	// GitCredentials open the repository of a template that has one.
	GitCredentials kiln.GitCredentials `json:"git_credentials,omitzero" doc:"For a template from a private git repository; never stored"`
}

// BuiltInRequest is the optional body of a build of a built-in template. What it has is for
// the server's operator: it makes the next version although there is one.
type BuiltInRequest struct {
	_       struct{} `additionalProperties:"true"`
	NoCache bool     `json:"no_cache,omitempty" doc:"Run every step again"`
	Pull    bool     `json:"pull,omitempty" doc:"Ask for newer base images"`
}

func (s *Server) registerTemplates() {
	tags := []string{"templates"}
	register(s, route{Operation: huma.Operation{
		OperationID: "getTemplate", Method: http.MethodGet, Path: "/v1/templates/{name}", Tags: tags,
		Summary: "Show one template with its versions",
	}}, s.getTemplate)
	register(s, route{Operation: huma.Operation{
		OperationID: "deleteTemplate", Method: http.MethodDelete, Path: "/v1/templates/{name}", Tags: tags,
		Summary: "Delete a custom template; running sandboxes keep what they use", DefaultStatus: http.StatusNoContent,
	}}, s.deleteTemplate)
	register(s, route{Operation: huma.Operation{
		OperationID: "rebuildTemplate", Method: http.MethodPost, Path: "/v1/templates/{name}/rebuild", Tags: tags,
		Summary: "Build the next version from the same source", DefaultStatus: http.StatusAccepted,
	}, unbounded: true}, s.rebuildTemplate)
	register(s, route{Operation: huma.Operation{
		OperationID: "buildBuiltIn", Method: http.MethodPost, Path: "/v1/catalog/{name}/build", Tags: tags,
		Summary: "Build a built-in template now, not on its first use; for the operator also again", DefaultStatus: http.StatusAccepted,
	}}, s.buildBuiltIn)
	register(s, route{Operation: huma.Operation{
		OperationID: "buildTemplate", Method: http.MethodPost, Path: "/v1/templates/build", Tags: tags,
		Summary:       "Create a template from a Dockerfile, a git repository, an image or a root filesystem; with replace, its next version",
		DefaultStatus: http.StatusAccepted,
	}, unbounded: true, body: buildRequestBody()}, s.buildTemplate)
}

func (s *Server) getTemplate(ctx context.Context, in *TemplateName) (*templateOutput, error) {
	t, versions, err := s.opts.Templates.Get(ctx, orgOf(ctx), in.Name)
	if err != nil {
		return nil, err
	}
	out := &templateOutput{Body: TemplateDetail{Template: templateOf(s.opts.Sizes, t), Versions: versions, Recipe: t.Recipe}}
	if out.Body.Versions == nil {
		out.Body.Versions = []*kiln.Version{}
	}
	ref, err := kiln.ParseTemplateRef(in.Name)
	if err != nil {
		return nil, err
	}
	if ref.Pin() != "" {
		out.Body.Pinned = versions[0].Number
		out.Body.describe(s.opts.Sizes, versions[0])
	}
	return out, nil
}

func (s *Server) deleteTemplate(ctx context.Context, in *TemplateName) (*struct{}, error) {
	return nil, s.opts.Templates.Delete(ctx, orgOf(ctx), in.Name)
}

func (s *Server) buildBuiltIn(ctx context.Context, in *builtInInput) (*buildOutput, error) {
	req := NewVersion{Template: in.Name}
	if in.Body != nil && (in.Body.NoCache || in.Body.Pull) {
		if err := operatorOnly(ctx); err != nil {
			return nil, err
		}
		req.NoCache, req.Pull = in.Body.NoCache, in.Body.Pull
	}
	queued, err := s.opts.Templates.BuildBuiltIn(ctx, req)
	if err != nil {
		return nil, err
	}
	return queued.output(ctx, s.opts.Sizes), nil
}

func (s *Server) rebuildTemplate(ctx context.Context, in *rebuildInput) (*buildOutput, error) {
	req := NewVersion{Template: in.Name}
	if in.Body != nil {
		req.NoCache, req.Pull, req.Secrets = in.Body.NoCache, in.Body.Pull, in.Body.Secrets
		req.GitCredentials = in.Body.GitCredentials
	}
	queued, err := s.opts.Templates.Rebuild(ctx, orgOf(ctx), req)
	if err != nil {
		return nil, err
	}
	return queued.output(ctx, s.opts.Sizes), nil
}
