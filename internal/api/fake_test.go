package api

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
)

// fakeAuth knows one token per organisation.
type fakeAuth map[string]string

func (a fakeAuth) Authenticate(_ context.Context, token string) (kiln.Principal, error) {
	if org, ok := a[token]; ok {
		return kiln.Principal{OrgID: org, TokenID: "tok_x", TokenName: "x", Scopes: []kiln.Scope{kiln.ScopeAdmin}}, nil
	}
	return kiln.Principal{}, kiln.Errorf(kiln.CodeUnauthorized, "unknown token")
}

// fakeTemplates keeps templates in memory and finishes no build by itself.
type fakeTemplates struct {
	mu       sync.Mutex
	byName   map[string]*kiln.Template
	contexts map[string][]byte
	requests []NewTemplate
	lines    []LogLine
	err      error // returned by Create when set
}

func newFakeTemplates() *fakeTemplates {
	return &fakeTemplates{byName: map[string]*kiln.Template{}, contexts: map[string][]byte{}}
}

func (f *fakeTemplates) Create(_ context.Context, org string, req NewTemplate) (Queued, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return Queued{}, f.err
	}
	var data []byte
	if req.Context != nil {
		var err error
		if data, err = io.ReadAll(req.Context); err != nil {
			return Queued{}, err
		}
	}
	f.contexts[req.Name] = data
	f.requests = append(f.requests, req)
	t := f.byName[req.Name]
	if t != nil && !req.Replace {
		return Queued{}, kiln.Errorf(kiln.CodeConflict, "template %q exists", req.Name)
	}
	if t == nil {
		t = &kiln.Template{ID: kiln.NewTemplateID(), OrgID: org, Name: req.Name, CreatedAt: time.Now()}
		f.byName[req.Name] = t
	}
	f.next(t, req.Metadata)
	return Queued{Template: t, Version: t.Latest}, nil
}

func (f *fakeTemplates) next(t *kiln.Template, md kiln.Metadata) {
	n := 1
	if t.Latest != nil {
		n = t.Latest.Number + 1
	}
	t.Latest = &kiln.Version{TemplateID: t.ID, Number: n, BuildID: fmt.Sprintf("bld%s%d", t.Name, n), Status: kiln.VersionPending, CreatedAt: time.Now(), Metadata: md}
}

func (f *fakeTemplates) Rebuild(_ context.Context, _ string, req NewVersion) (Queued, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, err := f.find(req.Template)
	if err != nil {
		return Queued{}, err
	}
	f.next(t, t.Latest.Metadata)
	return Queued{Template: t, Version: t.Latest}, nil
}

func (f *fakeTemplates) BuildBuiltIn(_ context.Context, req NewVersion) (Queued, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, err := f.find(req.Template)
	if err != nil {
		return Queued{}, err
	}
	return Queued{Template: t, Version: t.Latest, Unchanged: true}, nil
}

func (f *fakeTemplates) find(name string) (*kiln.Template, error) {
	if t := f.byName[name]; t != nil {
		return t, nil
	}
	return nil, kiln.Errorf(kiln.CodeNotFound, "template %q not found", name)
}

func (f *fakeTemplates) List(context.Context, string) ([]*kiln.Template, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*kiln.Template
	for _, t := range f.byName {
		out = append(out, t)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

// fakeVersions lists; what else is done with versions is tested on the real pipeline.
type fakeVersions struct {
	otherVersions
	*fakeTemplates
}

type otherVersions = Versions

func (f fakeVersions) ListPage(ctx context.Context, org string, _ TemplateQuery) ([]*kiln.Template, string, error) {
	list, err := f.List(ctx, org)
	return list, "", err
}

func (f *fakeTemplates) Get(_ context.Context, _, ref string) (*kiln.Template, []*kiln.Version, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, err := f.find(ref)
	if err != nil {
		return nil, nil, err
	}
	return t, []*kiln.Version{t.Latest}, nil
}

func (f *fakeTemplates) Delete(_ context.Context, _, ref string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, err := f.find(ref)
	if err != nil {
		return err
	}
	if t.BuiltIn {
		return kiln.Errorf(kiln.CodeForbidden, "template %q is built in", ref)
	}
	delete(f.byName, ref)
	return nil
}

func (f *fakeTemplates) Build(_ context.Context, _, id string) (*kiln.Template, *kiln.Version, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range f.byName {
		if t.Latest.BuildID == id {
			return t, t.Latest, nil
		}
	}
	return nil, nil, kiln.Errorf(kiln.CodeNotFound, "build %q not found", id)
}

func (f *fakeTemplates) Cancel(ctx context.Context, org, id string) error {
	_, v, err := f.Build(ctx, org, id)
	if err != nil {
		return err
	}
	v.Status = kiln.VersionFailed
	v.BuildError = &kiln.BuildError{Stage: kiln.StageImage, Message: "cancelled"}
	return nil
}

func (f *fakeTemplates) Logs(_ context.Context, _, _ string, offset int64, _ bool) iter.Seq2[LogLine, error] {
	return func(yield func(LogLine, error) bool) {
		for _, l := range f.lines[offset:] {
			if !yield(l, nil) {
				return
			}
		}
	}
}

// fakeSandboxes hands out guests that run commands on this machine.
type fakeSandboxes struct {
	mu      sync.Mutex
	byID    map[string]*kiln.Sandbox
	guest   *hostGuest
	filter  kiln.SandboxFilter // of the last List
	console string
	ended   chan struct{}
}

func newFakeSandboxes() *fakeSandboxes {
	return &fakeSandboxes{byID: map[string]*kiln.Sandbox{}, guest: &hostGuest{files: map[string][]byte{}}}
}

func (f *fakeSandboxes) Create(_ context.Context, req NewSandbox) (*kiln.Sandbox, error) {
	if req.Template != "hello" {
		return nil, kiln.Errorf(kiln.CodeNotFound, "template %q not found", req.Template)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	sb := &kiln.Sandbox{
		ID: kiln.NewSandboxID(), OrgID: req.OrgID, Template: req.Template, Status: kiln.SandboxRunning, BootMode: kiln.BootSnapshot,
		BootTime: 70 * time.Millisecond, CreatedAt: time.Now(), ExpiresAt: time.Now().Add(req.TTL), Metadata: req.Metadata,
		VCPUs: 1, MemoryMiB: 512, Size: "shared-cpu-1x", Egress: req.Egress,
	}
	f.byID[sb.ID] = sb
	return sb, nil
}

func (f *fakeSandboxes) List(_ context.Context, filter kiln.SandboxFilter) ([]*kiln.Sandbox, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.filter = filter
	var out []*kiln.Sandbox
	for _, sb := range f.byID {
		if sb.OrgID == filter.OrgID && sb.ID > filter.After.ID {
			out = append(out, sb)
		}
	}
	slices.SortFunc(out, func(a, b *kiln.Sandbox) int { return strings.Compare(a.ID, b.ID) })
	return out[:min(len(out), filter.Limit)], nil
}

func (f *fakeSandboxes) Get(_ context.Context, org, id string) (*kiln.Sandbox, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if sb := f.byID[id]; sb != nil && sb.OrgID == org {
		return sb, nil
	}
	return nil, kiln.Errorf(kiln.CodeNotFound, "sandbox %q not found", id)
}

func (f *fakeSandboxes) ChangeLifecycle(ctx context.Context, org, id string, c kiln.LifecycleChange) (*kiln.Sandbox, error) {
	sb, err := f.Get(ctx, org, id)
	if err != nil {
		return nil, err
	}
	if c.TTL != nil {
		sb.TTL, sb.ExpiresAt = *c.TTL, time.Now().Add(*c.TTL)
	}
	if c.Persistent != nil {
		sb.Persistent = *c.Persistent
	}
	if c.IdleTimeout != nil {
		sb.IdleTimeout = *c.IdleTimeout
	}
	return sb, nil
}

func (f *fakeSandboxes) Usage(_ context.Context, org string) ([]kiln.SandboxUsage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []kiln.SandboxUsage
	for _, sb := range f.byID {
		if sb.OrgID == org {
			list = append(list, kiln.SandboxUsage{ID: sb.ID, CPUTime: 1500 * time.Millisecond, MemoryBytes: 7})
		}
	}
	return list, nil
}

func (f *fakeSandboxes) Console(ctx context.Context, org, id string) (string, <-chan struct{}, error) {
	_, err := f.Get(ctx, org, id)
	return f.console, f.ended, err
}

func (f *fakeSandboxes) Pause(ctx context.Context, org, id string) (*kiln.Sandbox, error) {
	sb, err := f.Get(ctx, org, id)
	if err == nil && sb.Status == kiln.SandboxPaused {
		err = kiln.Errorf(kiln.CodeConflict, "paused already")
	}
	if err != nil {
		return nil, err
	}
	sb.Status = kiln.SandboxPaused
	return sb, nil
}

func (f *fakeSandboxes) Wake(ctx context.Context, org, id string) (*kiln.Sandbox, error) {
	sb, err := f.Get(ctx, org, id)
	if err != nil {
		return nil, err
	}
	sb.Status = kiln.SandboxRunning
	return sb, nil
}

func (f *fakeSandboxes) Fork(ctx context.Context, org, id string, req ForkSandbox) ([]Forked, error) {
	sb, err := f.Get(ctx, org, id)
	if err != nil {
		return nil, err
	}
	forked := []Forked{{Err: kiln.Errorf(kiln.CodeExhausted, "no room for the last one")}}
	for range req.Count - 1 {
		child := *sb
		child.ID, child.Parent = kiln.NewSandboxID(), id
		forked = append(forked, Forked{Sandbox: &child})
	}
	return forked, nil
}

func (f *fakeSandboxes) Destroy(ctx context.Context, org, id string) error {
	if _, err := f.Get(ctx, org, id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.byID, id)
	return nil
}

func (f *fakeSandboxes) Guest(ctx context.Context, org, id string) (Guest, error) {
	if _, err := f.Get(ctx, org, id); err != nil {
		return nil, err
	}
	return f.guest, nil
}

// hostGuest runs commands on this machine and keeps files in memory.
type hostGuest struct {
	mu    sync.Mutex
	files map[string][]byte
}

func (g *hostGuest) Run(ctx context.Context, cmd guest.Command) (guest.Exit, error) {
	c := exec.CommandContext(ctx, cmd.Args[0], cmd.Args[1:]...)
	c.Stdin, c.Stdout, c.Stderr = cmd.Stdin, cmd.Stdout, cmd.Stderr
	for k, v := range cmd.Env {
		c.Env = append(c.Environ(), k+"="+v)
	}
	err := c.Run()
	if ctx.Err() != nil {
		return guest.Exit{}, ctx.Err()
	}
	if c.ProcessState == nil {
		fmt.Fprintln(cmd.Stderr, err)
		return guest.Exit{Code: 127}, nil
	}
	return guest.Exit{Code: c.ProcessState.ExitCode()}, nil
}

func (g *hostGuest) content(path string) ([]byte, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if b, ok := g.files[path]; ok {
		return b, nil
	}
	return nil, kiln.Errorf(kiln.CodeNotFound, "%s: no such file", path)
}

func (g *hostGuest) ReadFile(_ context.Context, path string) (io.ReadCloser, error) {
	b, err := g.content(path)
	var r io.Reader = bytes.NewReader(b)
	if path == "/broken" {
		r = io.MultiReader(r, iotest.ErrReader(io.ErrUnexpectedEOF))
	}
	return io.NopCloser(r), err
}

func (g *hostGuest) WriteFile(_ context.Context, path string, r io.Reader) error {
	if strings.HasPrefix(path, "/proc/") {
		return kiln.Errorf(kiln.CodeInvalid, "%s: permission denied", path)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.files[path] = b
	return nil
}

func (g *hostGuest) Stat(_ context.Context, path string) (guest.FileInfo, error) {
	b, err := g.content(path)
	return guest.FileInfo{Name: path[strings.LastIndex(path, "/")+1:], Path: path, Size: int64(len(b)), Mode: 0o644, ModTime: time.Unix(1000, 0)}, err
}

func (g *hostGuest) List(ctx context.Context, dir string) ([]guest.FileInfo, error) {
	g.mu.Lock()
	names := make([]string, 0, len(g.files))
	for p := range g.files {
		names = append(names, p)
	}
	g.mu.Unlock()
	sort.Strings(names)
	var out []guest.FileInfo
	for _, p := range names {
		if strings.HasPrefix(p, dir+"/") {
			info, _ := g.Stat(ctx, p)
			out = append(out, info)
		}
	}
	return out, nil
}

func (g *hostGuest) Remove(_ context.Context, path string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.files, path)
	return nil
}

// Diff knows no root filesystem but says what it was asked.
func (f *fakeTemplates) Diff(_ context.Context, org string, a, b kiln.TemplateRef) (*RootfsDiff, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, ref := range []kiln.TemplateRef{a, b} {
		if t := f.byName[ref.NameOrID]; t == nil || t.OrgID != org {
			return nil, kiln.Errorf(kiln.CodeNotFound, "template %q does not exist", ref.NameOrID)
		}
	}
	return &RootfsDiff{
		A: RootfsOf{Template: a.NameOrID, Version: a.Version}, B: RootfsOf{Template: b.NameOrID, Version: b.Version},
		Differences: []RootfsDifference{{Path: "etc/x", Field: "mode", A: "0644", B: "0600"}},
	}, nil
}

// testServer is an API over fakes.
type testServer struct {
	*httptest.Server
	templates *fakeTemplates
	sandboxes *fakeSandboxes
}

const testToken = "secret"

func newTestServer(t *testing.T, change func(*Options)) *testServer {
	t.Helper()
	ts := &testServer{templates: newFakeTemplates(), sandboxes: newFakeSandboxes()}
	opts := Options{
		Templates: ts.templates, Versions: fakeVersions{fakeTemplates: ts.templates}, Diffs: ts.templates, Sandboxes: ts.sandboxes, Observer: ts.sandboxes, Networks: fakeNetworks{ts.sandboxes}, Auth: fakeAuth{testToken: kiln.LocalOrgID, "other": "org2"},
		SpoolDir: t.TempDir(), Version: "test",
	}
	if change != nil {
		change(&opts)
	}
	ts.Server = httptest.NewServer(New(opts).Handler())
	t.Cleanup(ts.Close)
	return ts
}

// do sends a request with the test token, and names and values of more headers in turns. It
// returns status and body.
func (ts *testServer) do(t *testing.T, method, path, contentType string, body io.Reader, headers ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, ts.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+testToken)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := ts.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}
