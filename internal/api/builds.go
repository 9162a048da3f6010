package api

import (
	"context"
	"net/http"
	"sort"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/kilnvm/kiln"
)

// BuildStatus is a version's status in the words of PandaStack's client, which waits
// for done or failed.
type BuildStatus string

// Statuses of a build.
const (
	BuildQueued  BuildStatus = "queued"
	BuildRunning BuildStatus = "running"
	BuildBaking  BuildStatus = "baking"
	BuildDone    BuildStatus = "done"
	BuildFailed  BuildStatus = "failed"
)

// Ended reports whether the build never changes again.
func (s BuildStatus) Ended() bool { return s == BuildDone || s == BuildFailed }

// Version returns what Kiln itself calls a version with such a build.
func (s BuildStatus) Version() kiln.VersionStatus {
	switch s {
	case BuildQueued:
		return kiln.VersionPending
	case BuildDone:
		return kiln.VersionReady
	case BuildFailed:
		return kiln.VersionFailed
	case BuildRunning, BuildBaking:
	}
	return kiln.VersionBuilding
}

// Build is one version of a template while and after it is built.
type Build struct {
	ID         string             `json:"id"`
	TemplateID string             `json:"template_id"`
	Name       string             `json:"name" doc:"The template's name"`
	Version    int                `json:"version"`
	Status     BuildStatus        `json:"status" enum:"queued,running,baking,done,failed"`
	Error      string             `json:"error,omitempty"`
	BuildError *kiln.BuildError   `json:"build_error,omitempty"`
	StartedAt  time.Time          `json:"started_at" doc:"When it was queued, until it started"`
	EndedAt    *time.Time         `json:"ended_at,omitempty"`
	SizeMB     int                `json:"size_mb" doc:"Scratch disk of its sandboxes in MiB"`
	CPU        int                `json:"cpu"`
	MemoryMB   int                `json:"memory_mb"`
	Bytes      int64              `json:"bytes,omitempty" doc:"Size of the root filesystem"`
	Stages     []kiln.StageResult `json:"stages,omitempty"`
	Unchanged  bool               `json:"unchanged,omitempty" doc:"A build would have changed nothing, so none was queued"`
	Warnings   []string           `json:"warnings,omitempty"`
}

func buildOf(sizes kiln.SizeTable, t *kiln.Template, v *kiln.Version) Build {
	b := Build{
		ID: v.BuildID, TemplateID: t.ID, Name: t.Name, Version: v.Number, Status: buildStatus(v), BuildError: v.BuildError,
		StartedAt: v.StartedAt, SizeMB: v.ScratchMB(), Bytes: v.Rootfs.Size, Stages: v.Stages,
	}
	if b.StartedAt.IsZero() {
		b.StartedAt = v.CreatedAt
	}
	if !v.EndedAt.IsZero() {
		b.EndedAt = &v.EndedAt
	}
	if v.BuildError != nil {
		b.Error = v.BuildError.Error()
	} else if v.Status == kiln.VersionFailed {
		b.Error = "the build failed"
	}
	if size, err := sizes.ByName(v.DefaultSize()); err == nil {
		b.CPU, b.MemoryMB = size.VCPUs, size.MemoryMiB
	}
	return b
}

func buildStatus(v *kiln.Version) BuildStatus {
	switch v.Status {
	case kiln.VersionPending:
		return BuildQueued
	case kiln.VersionReady:
		return BuildDone
	case kiln.VersionFailed:
		return BuildFailed
	case kiln.VersionBuilding:
	}
	if n := len(v.Stages); n > 0 && v.Stages[n-1].Stage == kiln.StageRootfs {
		return BuildBaking
	}
	return BuildRunning
}

// BuildID is the path parameter of everything about one build.
type BuildID struct {
	ID string `path:"id"`
}

type (
	buildsOutput struct{ Body []Build }
	logsInput    struct {
		BuildID
		Follow string `query:"follow" doc:"1 waits for more until the build has ended"`
		Events string `query:"events" doc:"1 adds the records that only displays need: kinds event and begin"`
		Offset int64  `query:"offset" minimum:"0" doc:"Continue after a line that gave this as next"`
		Last   int64  `header:"Last-Event-ID" minimum:"0" doc:"The same, from a reader of events whose connection broke; wins over offset"`
	}
)

func (s *Server) registerBuilds() {
	tags := []string{"builds"}
	register(s, route{Operation: huma.Operation{
		OperationID: "listBuilds", Method: http.MethodGet, Path: "/v1/templates/builds", Tags: tags,
		Summary: "List the newest build of every template, newest first",
	}}, s.listBuilds)
	register(s, route{Operation: huma.Operation{
		OperationID: "getBuild", Method: http.MethodGet, Path: "/v1/templates/builds/{id}", Tags: tags,
		Summary: "Show one build",
	}}, s.getBuild)
	register(s, route{Operation: huma.Operation{
		OperationID: "cancelBuild", Method: http.MethodPost, Path: "/v1/templates/builds/{id}/cancel", Tags: tags,
		Summary: "Stop a queued or running build", DefaultStatus: http.StatusNoContent,
	}}, s.cancelBuild)
	register(s, route{Operation: huma.Operation{
		OperationID: "buildLogs", Method: http.MethodGet, Path: "/v1/templates/builds/{id}/logs", Tags: tags,
		Summary:   "The log of a build as server-sent events, ended by an event named done",
		Responses: eventStream("Events without a name carry a LogLine; done carries the Build"),
	}, unbounded: true}, s.buildLogs)
}

func (s *Server) listBuilds(ctx context.Context, _ *struct{}) (*buildsOutput, error) {
	list, err := s.opts.Templates.List(ctx, orgOf(ctx))
	if err != nil {
		return nil, err
	}
	out := &buildsOutput{Body: make([]Build, 0, len(list))}
	for _, t := range list {
		if t.Latest != nil {
			out.Body = append(out.Body, buildOf(s.opts.Sizes, t, t.Latest))
		}
	}
	sort.SliceStable(out.Body, func(i, j int) bool { return out.Body[i].StartedAt.After(out.Body[j].StartedAt) })
	return out, nil
}

func (s *Server) getBuild(ctx context.Context, in *BuildID) (*buildOutput, error) {
	t, v, err := s.opts.Templates.Build(ctx, orgOf(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return &buildOutput{Body: buildOf(s.opts.Sizes, t, v)}, nil
}

func (s *Server) cancelBuild(ctx context.Context, in *BuildID) (*struct{}, error) {
	org := orgOf(ctx)
	t, v, err := s.opts.Templates.Build(ctx, org, in.ID)
	if err != nil {
		return nil, err
	}
	note(ctx, "template", t.Name)
	note(ctx, "version", strconv.Itoa(v.Number))
	if t.BuiltIn && callerOf(ctx).Operator() {
		org = t.OrgID
	}
	return nil, s.opts.Templates.Cancel(ctx, org, in.ID)
}

func (s *Server) buildLogs(ctx context.Context, in *logsInput) (*huma.StreamResponse, error) {
	org := orgOf(ctx)
	if _, _, err := s.opts.Templates.Build(ctx, org, in.ID); err != nil {
		return nil, err
	}
	follow, wantEvents, offset := isSet(in.Follow), isSet(in.Events), in.Offset
	if in.Last > 0 {
		offset = in.Last
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		r, w := humago.Unwrap(hctx)
		events := newEvents(r.Context(), w)
		defer events.Close()
		for line, err := range s.opts.Templates.Logs(events.Context(), org, in.ID, offset, follow) {
			if err != nil {
				_ = events.Send("error", errorFor(r.Context(), s.log, "build log", err))
				return
			}
			if line.Kind.ForDisplay() && !wantEvents {
				continue
			}
			if events.SendFrom(strconv.FormatInt(line.Next, 10), "", line) != nil {
				return // the reader has gone
			}
		}
		t, v, err := s.opts.Templates.Build(events.Context(), org, in.ID)
		if err != nil {
			_ = events.Send("error", errorFor(r.Context(), s.log, "build log", err))
			return
		}
		_ = events.Send("done", buildOf(s.opts.Sizes, t, v))
	}}, nil
}

// isSet reports whether a query parameter says yes.
func isSet(param string) bool { return param != "" && param != "0" && param != "false" }
