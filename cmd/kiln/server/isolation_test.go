package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/artifact"
	"github.com/kilnvm/kiln/internal/config"
	"github.com/kilnvm/kiln/internal/gc"
	"github.com/kilnvm/kiln/internal/pipeline"
	"github.com/kilnvm/kiln/internal/proxy"
	"github.com/kilnvm/kiln/internal/sandbox"
	"github.com/kilnvm/kiln/internal/store"
	"github.com/kilnvm/kiln/internal/telemetry"
	"github.com/kilnvm/kiln/internal/testkit"
	"github.com/kilnvm/kiln/internal/vmm/fakevm"
)

// noStages builds nothing: its tests are about what is there already.
type noStages struct{ err error }

var errNoStages = errors.New("nothing is built here")

func (s noStages) Resolve(context.Context, kiln.Source, kiln.Progress) ([]kiln.BaseImage, error) {
	return nil, s.err
}
func (noStages) Key(kiln.Source, []kiln.BaseImage) kiln.Digest { return kiln.DigestOf(nil) }
func (noStages) Build(context.Context, kiln.Source, []kiln.BaseImage, kiln.Progress) (*kiln.Image, error) {
	return nil, errNoStages
}

type noSnapshots struct{}

func (noSnapshots) Key(spec kiln.VMSpec) kiln.Digest {
	return kiln.DigestOf([]byte(spec.Rootfs.Digest))
}
func (noSnapshots) Bake(context.Context, kiln.VMSpec, kiln.Progress) (kiln.Snapshot, error) {
	return kiln.Snapshot{}, errNoStages
}

// tenants is a server with the things of two organisations.
type tenants struct {
	*httptest.Server
	node   *node
	tokens map[string]string // by organisation
	ours   thing             // of organisation "ours"
	api    []byte            // its description
}

// thing is what an organisation has, by the names of the parameters in paths.
type thing struct{ template, name, build, sandbox, token, org string }

func newTenants(t *testing.T) *tenants { return newTenantsWhere(t, errNoStages) }

// newTenantsWhere is newTenants with why every build fails.
func newTenantsWhere(t *testing.T, builds error) *tenants {
	t.Helper()
	ctx := t.Context()
	dir := testkit.ShortTempDir(t)
	cfg := config.Default()
	cfg.DataDir = dir
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	n := &node{log: log}
	var err error
	must := func(e error) {
		t.Helper()
		if e != nil {
			t.Fatal(e)
		}
	}
	n.store, err = store.Open(ctx, filepath.Join(dir, "kiln.db"))
	must(err)
	n.blobs, err = artifact.Open(filepath.Join(dir, blobsDir))
	must(err)
	n.pipeline, err = pipeline.Start(ctx, pipeline.Options{
		Store: n.store, Blobs: n.blobs, Images: noStages{builds}, Rootfs: rootfsStage{}, Snapshots: noSnapshots{}, Dir: filepath.Join(dir, "builds"), Sizes: cfg.SizeTable(),
	})
	must(err)
	guests := &fakevm.Guests{}
	n.sandboxes, err = sandbox.New(sandbox.Options{
		Driver: &fakevm.Driver{Version: "1", Serve: guests.Serve}, Store: n.store, Blobs: n.blobs, Dir: filepath.Join(dir, "sb"),
		SnapshotKey: noSnapshots{}.Key, Sizes: cfg.SizeTable(), Log: log,
	})
	must(err)
	n.garbage, err = gc.New(gc.Options{Store: n.store, Blobs: n.blobs, Logs: n.pipeline,
		SnapshotKey: func(v *kiln.Version, _ string) (kiln.Digest, error) { return v.Rootfs.Digest, nil }, Policy: gc.Policy{Keep: 1, SandboxHistory: time.Hour, AuditHistory: time.Hour}})
	must(err)
	t.Cleanup(func() {
		closing, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := n.close(closing); err != nil {
			t.Error(err)
		}
	})
	s := &serving{opts: Options{Config: cfg, Log: log, Version: "test"}, log: log, node: n, metrics: telemetry.NewMetrics("test")}
	w := &tenants{node: n, tokens: map[string]string{}, Server: httptest.NewServer(s.handler(n, t.TempDir()))}
	t.Cleanup(w.Close)
	for _, name := range []string{"ours", "theirs"} {
		o := kiln.Org{ID: "org_" + name, Name: name, CreatedAt: time.Now()}
		must(n.store.CreateOrg(ctx, o))
	}
	for _, org := range []string{"org_ours", "org_theirs", kiln.LocalOrgID} {
		w.tokens[org], err = n.store.CreateToken(ctx, kiln.Token{ID: "tok_of_" + org, OrgID: org, Name: "admin", Scopes: []kiln.Scope{kiln.ScopeAdmin}})
		must(err)
	}
	w.api, err = api.New(api.Options{Version: "1", SpoolDir: t.TempDir()}).OpenAPI()
	must(err)
	w.fill(t)
	return w
}

// template makes a template with a version that is ready; orgID "" makes a built-in one.
func (w *tenants) template(t *testing.T, orgID, name, description string) *kiln.Template {
	t.Helper()
	ctx := t.Context()
	blob := func(role, content string) kiln.Blob {
		b, err := w.node.blobs.IngestReader(ctx, strings.NewReader(content), role, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	tmpl := &kiln.Template{ID: kiln.NewTemplateID(), OrgID: orgID, BuiltIn: orgID == "", Name: name, Description: description}
	v := &kiln.Version{TemplateID: tmpl.ID, BuildID: kiln.NewID("build_"), Metadata: kiln.Metadata{DiskMB: 16}}
	if err := w.node.store.CreateTemplate(ctx, tmpl, v, store.Build{Node: "elsewhere"}, nil); err != nil {
		t.Fatal(err)
	}
	v, _, err := w.node.store.ClaimBuild(ctx, v.BuildID)
	if err != nil {
		t.Fatal(err)
	}
	v.Rootfs = blob(kiln.RoleRootfs, "rootfs")
	const memory = "memory of a fake machine\n" // what fakevm restores
	snap := kiln.Snapshot{Key: noSnapshots{}.Key(kiln.VMSpec{Rootfs: v.Rootfs}), SizeName: kiln.DefaultSizeName, Rootfs: v.Rootfs,
		Memory: blob(kiln.RoleMemory, memory), VMState: blob(kiln.RoleVMState, memory), Scratch: blob(kiln.RoleScratch, "scratch")}
	if err := w.node.store.PutSnapshot(ctx, tmpl.ID, 1, snap); err != nil {
		t.Fatal(err)
	}
	if err := w.node.store.Promote(ctx, v); err != nil {
		t.Fatal(err)
	}
	return tmpl
}

// fill gives organisation "ours" a template with a version that is ready, one whose build
// is queued on another node, and a running sandbox.
func (w *tenants) fill(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	tmpl := w.template(t, "org_ours", "ourtemplate", "oursecretwords")
	if _, err := w.node.store.SetTag(ctx, "org_ours", tmpl.ID, 1, "v1"); err != nil {
		t.Fatal(err)
	}
	next := &kiln.Version{TemplateID: tmpl.ID, BuildID: kiln.NewID("build_")}
	if err := w.node.store.CreateVersion(ctx, next, store.Build{Node: "elsewhere"}, nil); err != nil {
		t.Fatal(err)
	}
	sb, err := w.node.sandboxes.Create(ctx, sandbox.CreateRequest{OrgID: "org_ours", Template: "ourtemplate"})
	if err != nil {
		t.Fatal(err)
	}
	w.ours = thing{template: tmpl.ID, name: tmpl.Name, build: next.BuildID, sandbox: sb.ID, token: "tok_of_org_ours", org: "org_ours"}
}

func (w *tenants) do(t *testing.T, org, method, path, body string, header map[string]string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, w.URL+path, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.tokens[org])
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := w.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// bodies of requests that are not valid without one.
var bodies = map[string]string{
	"exec":            `{"cmd":"true"}`,
	"execStream":      `{"cmd":"true"}`,
	"createSandbox":   `{"template":"ourtemplate"}`,
	"createToken":     `{"name":"x","scopes":["admin"],"org":"org_ours"}`,
	"createOrg":       `{"name":"x"}`,
	"changeLifecycle": `{"ttl_seconds":60}`,
	"setEgress":       `{"mode":"deny_all"}`,
	"setWarmSlots":    `{"slots":1}`,

	"updateTemplateQuota": `{"ops_per_sec":50}`,
	"captureTemplate":     `{"name":"x","sandbox":"{sandbox}"}`,
}

// TestOthersThingsDoNotExist asks every route of the API, also those that come later, for
// another organisation's things, by all their names: they are not found, never forbidden,
// and in no list.
func TestOthersThingsDoNotExist(t *testing.T) {
	w := newTenants(t)
	// What names nobody's things: everybody may ask, and gets nothing of others. The
	// operator's routes are refused to all others alike.
	elsewhere := map[string]int{
		"healthz": 200, "readyz": 200, "listTemplates": 200, "listBuilds": 200, "listSandboxes": 200, "listTokens": 200, "listAudit": 200, "listOrgs": 200,
		"sandboxUsage": 200, "whoami": 200, "listWarmSlots": 200,
		"createOrg": 403, "deleteOrg": 403, "collectGarbage": 403,
		"buildTemplate": 400, // a form, whose template would be one's own
	}
	asked := 0
	for path, methods := range w.operations(t) {
		for method, op := range methods {
			for _, concrete := range w.concrete(path, op.OperationID) {
				request := strings.ReplaceAll(bodies[op.OperationID], "{sandbox}", w.ours.sandbox)
				status, body := w.do(t, "org_theirs", strings.ToUpper(method), concrete, request, nil)
				want := 404
				if other, ok := elsewhere[op.OperationID]; ok {
					want = other
				}
				if status == 400 && strings.Contains(body, "has no meaning here") {
					want = 400 // a pin, whatever it is of
				}
				if status != want {
					t.Errorf("%s %s (%s): %d, want %d: %s", method, concrete, op.OperationID, status, want, body)
				}
				for _, secret := range []string{"oursecretwords", "tok_of_org_ours", "running"} {
					if strings.Contains(body, secret) && !strings.Contains(concrete, secret) {
						t.Errorf("%s %s tells %q: %s", method, concrete, secret, body)
					}
				}
				if want == 200 && (strings.Contains(body, w.ours.template) || strings.Contains(body, w.ours.sandbox)) {
					t.Errorf("%s %s lists another organisation's: %s", method, concrete, body)
				}
				asked++
			}
		}
	}
	if asked < 60 {
		t.Errorf("only %d requests were made", asked)
	}
	// Nothing has happened to what they asked for, and its owner sees it.
	for _, path := range []string{"/v1/templates/ourtemplate", "/v1/tags/ourtemplate", "/v1/versions/" + w.ours.template, "/v1/templates/builds/" + w.ours.build, "/v1/sandboxes/" + w.ours.sandbox} {
		if status, body := w.do(t, "org_ours", "GET", path, "", nil); status != 200 || path == "/v1/sandboxes/"+w.ours.sandbox && !strings.Contains(body, "running") {
			t.Errorf("its owner: GET %s: %d %s", path, status, body)
		}
	}
	if status, body := w.do(t, "org_ours", "POST", "/v1/sandboxes/"+w.ours.sandbox+"/exec", bodies["exec"], nil); status != 200 {
		t.Errorf("its owner: exec: %d %s", status, body)
	}
	// The operator runs the server and does not look into it.
	if status, _ := w.do(t, kiln.LocalOrgID, "GET", "/v1/sandboxes/"+w.ours.sandbox, "", nil); status != 404 {
		t.Errorf("the operator: %d", status)
	}
}

// concrete fills the parameters of a path with every name of our things.
func (w *tenants) concrete(path, operation string) []string {
	o := w.ours
	if operation == "diffTemplates" {
		return []string{path + "?a=" + o.name + "&b=" + o.name, path + "?a=" + o.template + "&b=" + o.template + "@1"}
	}
	ids := []string{o.sandbox}
	if strings.Contains(path, "/builds/") {
		ids = []string{o.build}
	}
	query := ""
	if strings.Contains(path, "/fs") {
		query = "?path=/etc/passwd"
	}
	list := []string{path + query}
	for param, values := range map[string][]string{
		"{name}": {o.name, o.template, o.name + "@1", o.template + ":v1"}, "{id}": ids, "{tag}": {"v1"},
		"{port}":  {"8080"},
		"{token}": {o.token, o.token + "?org=" + o.org}, "{org}": {o.org, "ours"},
	} {
		var filled []string
		for _, p := range list {
			if !strings.Contains(p, param) {
				filled = append(filled, p)
				continue
			}
			for _, v := range values {
				filled = append(filled, strings.Replace(p, param, v, 1))
			}
		}
		list = filled
	}
	return list
}

func TestOthersSandboxesAreNotProxied(t *testing.T) {
	w := newTenants(t)
	at := func(id string) map[string]string {
		return map[string]string{proxy.HeaderSandboxID: id, proxy.HeaderSandboxPort: proxy.DaemonPort}
	}
	if status, body := w.do(t, "org_ours", "GET", "/health", "", at(w.ours.sandbox)); status != 204 {
		t.Errorf("its owner: %d %s", status, body)
	}
	status, body := w.do(t, "org_theirs", "GET", "/health", "", at(w.ours.sandbox))
	unknown, text := w.do(t, "org_theirs", "GET", "/health", "", at("inone"))
	if status != unknown || strings.ReplaceAll(body, w.ours.sandbox, "inone") != text {
		t.Errorf("another organisation: %d %s, but for one that does not exist: %d %s", status, body, unknown, text)
	}
}

// notChanges are the operations that change nothing of what Kiln manages.
var notChanges = []string{"exec", "execStream", "writeFile", "deleteFile", "keepSandboxAlive"}

// changesElsewhere need a builder or a network; the API's own tests look for their records.
var changesElsewhere = []string{"buildTemplate", "rebuildTemplate", "rollbackTemplate", "setEgress"}

// TestEveryChangeIsRecorded looks for who, what, when and from where, and has a request for
// every operation that changes something.
func TestEveryChangeIsRecorded(t *testing.T) {
	w := newTenants(t)
	w.template(t, "org_ours", "second", "")
	w.unbuilt(t, "waiting")
	sandbox := "/v1/sandboxes/" + w.ours.sandbox
	const ours, operator = "org_ours", kiln.LocalOrgID
	changes := []struct{ who, method, path, body, action, detail string }{
		{ours, "PUT", "/v1/tags/ourtemplate/stable", `{"version":1}`, "setTag", ""},
		{ours, "DELETE", "/v1/tags/ourtemplate/stable", "", "removeTag", ""},
		{ours, "PATCH", "/v1/templates/ourtemplate/quota", `{"ops_per_sec":50}`, "updateTemplateQuota", ""},
		{ours, "POST", "/v1/templates/builds/" + w.ours.build + "/cancel", "", "cancelBuild", "ourtemplate"},
		{ours, "POST", "/v1/tokens", `{"name":"ci","scopes":["templates:read"],"ttl_seconds":60}`, "createToken", "templates:read"},
		{ours, "DELETE", "/v1/tokens/ci", "", "revokeToken", ""},
		{ours, "PUT", "/v1/pool/ourtemplate", `{"slots":3}`, "setWarmSlots", "3"},
		{ours, "PATCH", sandbox + "/lifecycle", `{"ttl_seconds":77}`, "changeLifecycle", "77"},
		{ours, "POST", sandbox + "/fork", `{}`, "forkSandbox", ""},
		{ours, "POST", sandbox + "/pause", "", "pauseSandbox", ""},
		{ours, "POST", sandbox + "/wake", "", "wakeSandbox", ""},
		{ours, "POST", sandbox + "/hibernate", "", "hibernateSandbox", ""},
		{ours, "POST", sandbox + "/resume", "", "resumeSandbox", ""},
		{ours, "POST", "/v1/templates/capture", `{"name":"x","sandbox":"` + w.ours.sandbox + `"}`, "captureTemplate", w.ours.sandbox},
		{ours, "POST", "/v1/sandboxes", `{"template":"ourtemplate"}`, "createSandbox", "ourtemplate"},
		{ours, "POST", "/v1/sandboxes", `{"template":"waiting"}`, "createSandbox", "waiting"},
		{ours, "POST", "/v1/catalog/waiting/build", "", "buildBuiltIn", "waiting"},
		{ours, "DELETE", sandbox, "", "deleteSandbox", ""},
		{ours, "DELETE", "/v1/templates/second", "", "deleteTemplate", ""},
		{operator, "POST", "/v1/orgs", `{"name":"new"}`, "createOrg", "new"},
		{operator, "DELETE", "/v1/orgs/new", "", "deleteOrg", "new"},
		{operator, "POST", "/v1/gc", "", "collectGarbage", ""},
	}
	before := time.Now()
	for _, c := range changes {
		status, body := w.do(t, c.who, c.method, c.path, c.body, nil)
		if status >= 300 && !strings.Contains(body, "its build has begun") {
			t.Errorf("%s %s: %d %s", c.method, c.path, status, body)
		}
	}
	// These change nothing.
	w.do(t, ours, "DELETE", "/v1/templates/none", "", nil)
	w.do(t, ours, "PATCH", "/v1/sandboxes/none/lifecycle", `{"ttl_seconds":77}`, nil)
	w.do(t, operator, "POST", "/v1/gc?dry_run=true", "", nil)
	w.do(t, operator, "POST", "/v1/gc", "", nil)
	events, err := w.node.store.Audit(t.Context(), "", "", 100)
	if err != nil || len(events) != len(changes) {
		t.Errorf("%d events for %d changes, %v", len(events), len(changes), err)
	}
	recorded := slices.Concat(notChanges, changesElsewhere)
	for i, e := range slices.Backward(events) {
		c := changes[len(events)-1-i]
		if e.Action != c.action || e.Target != strings.TrimPrefix(c.path, "/v1") || e.TokenID != "tok_of_"+c.who || e.TokenName != "admin" ||
			e.Address != "127.0.0.1" || e.Time.Before(before) || e.OrgID != c.who || !strings.Contains(fmt.Sprint(e.Detail), c.detail) {
			t.Fatalf("event %+v, want %s of %s", e, c.action, c.path)
		}
		recorded = append(recorded, e.Action)
	}
	for _, op := range w.changing(t) {
		if !slices.Contains(recorded, op) {
			t.Errorf("operation %s: nobody has said whether it is recorded", op)
		}
	}
}

// operations returns the operations of the API, by path and method.
func (w *tenants) operations(t *testing.T) map[string]map[string]operation {
	t.Helper()
	var doc struct {
		Paths map[string]map[string]operation `json:"paths"`
	}
	if err := json.Unmarshal(w.api, &doc); err != nil {
		t.Fatal(err)
	}
	return doc.Paths
}

type operation struct {
	OperationID string `json:"operationId"`
}

// changing returns the operations of the API that are not mere questions.
func (w *tenants) changing(t *testing.T) (operations []string) {
	t.Helper()
	for _, methods := range w.operations(t) {
		for method, op := range methods {
			if method != "get" && method != "head" {
				operations = append(operations, op.OperationID)
			}
		}
	}
	return operations
}

func TestNewTokens(t *testing.T) {
	w := newTenants(t)
	for body, want := range map[string]int{
		`{"name":"ten-years","scopes":["admin"],"ttl_seconds":315360000}`:  201,
		`{"name":"longer","scopes":["admin"],"ttl_seconds":315360001}`:     400,
		`{"name":"overflow","scopes":["admin"],"ttl_seconds":10000000000}`: 400,
		`{"name":"tok_x","scopes":["admin"]}`:                              400,
	} {
		if status, answer := w.do(t, "org_ours", "POST", "/v1/tokens", body, nil); status != want {
			t.Errorf("%s: %d %s, want %d", body, status, answer, want)
		}
	}
	w.token(t, "reader", "org_ours", kiln.ScopeSandboxesRead)
	want := `"org_id":"org_ours","org":"ours","token_id":"tok_reader","token_name":"reader","scopes":["sandboxes:read"]`
	if status, body := w.do(t, "reader", "GET", "/v1/whoami", "", nil); status != 200 || !strings.Contains(body, want) {
		t.Errorf("whoami: %d %s", status, body)
	}
}

// TestOperatorManagesTokensOfOthers: and nobody else does.
func TestOperatorManagesTokensOfOthers(t *testing.T) {
	w := newTenants(t)
	if status, body := w.do(t, kiln.LocalOrgID, "POST", "/v1/tokens", `{"name":"ci","scopes":["admin"],"org":"ours"}`, nil); status != 201 || !strings.Contains(body, "org_ours") {
		t.Errorf("create: %d %s", status, body)
	}
	if status, body := w.do(t, kiln.LocalOrgID, "GET", "/v1/tokens?org=ours", "", nil); status != 200 || !strings.Contains(body, `"ci"`) || strings.Contains(body, "kiln_") {
		t.Errorf("list: %d %s", status, body)
	}
	if status, body := w.do(t, "org_theirs", "DELETE", "/v1/tokens/ci?org=ours", "", nil); status != 404 {
		t.Errorf("revoked by another: %d %s", status, body)
	}
	if status, body := w.do(t, kiln.LocalOrgID, "DELETE", "/v1/tokens/ci?org=ours", "", nil); status != 204 {
		t.Errorf("revoke: %d %s", status, body)
	}
	if status, body := w.do(t, "org_ours", "GET", "/v1/audit", "", nil); status != 200 || strings.Count(body, `"org_id":"org_ours"`) != 2 {
		t.Errorf("its audit log: %d %s", status, body)
	}
	if status, body := w.do(t, kiln.LocalOrgID, "GET", "/v1/audit?all=true&limit=1", "", nil); status != 200 || !strings.Contains(body, "revokeToken") {
		t.Errorf("audit of all: %d %s", status, body)
	}
	for _, query := range []string{"before=-3", "before=aud_nope", "before=%00", "limit=0", "limit=-3", "limit=501", "limit=x"} {
		if status, body := w.do(t, "org_ours", "GET", "/v1/audit?"+query, "", nil); status != 400 || !strings.Contains(body, `"invalid"`) {
			t.Errorf("audit with %s: %d %s", query, status, body)
		}
	}
	if status, body := w.do(t, kiln.LocalOrgID, "POST", "/v1/gc?dry_run=true", "", nil); status != 200 || !strings.Contains(body, `"dry_run":true`) {
		t.Errorf("gc: %d %s", status, body)
	}
}

// TestWarmSlotsOfBuiltInTemplates: they are everybody's, and only the operator says how many
// there are and sees how many were wanted.
func TestWarmSlotsOfBuiltInTemplates(t *testing.T) {
	w := newTenants(t)
	w.template(t, "", "builtin", "")
	w.unbuilt(t, "waiting")
	w.token(t, "builder", kiln.LocalOrgID, kiln.ScopeTemplatesWrite)
	for _, c := range []struct {
		who, name string
		want      int
	}{
		{"org_ours", "builtin", 403}, {"builder", "builtin", 403}, {kiln.LocalOrgID, "builtin", 200},
		{"org_ours", "ourtemplate", 200}, {"org_theirs", "ourtemplate", 404}, {"org_ours", "waiting", 403}, {kiln.LocalOrgID, "waiting", 409},
	} {
		if status, body := w.do(t, c.who, "PUT", "/v1/pool/"+c.name, `{"slots":2}`, nil); status != c.want {
			t.Errorf("%s sets slots of %s: %d %s", c.who, c.name, status, body)
		}
	}
	// A start is demand, whoever's it was.
	if status, body := w.do(t, "org_theirs", "POST", "/v1/sandboxes", `{"template":"builtin"}`, nil); status != 201 {
		t.Fatalf("start: %d %s", status, body)
	}
	for who, want := range map[string]string{kiln.LocalOrgID: "builtin", "org_ours": "ourtemplate", "org_theirs": "", "builder": ""} {
		_, body := w.do(t, who, "GET", "/v1/pool", "", nil)
		for _, name := range []string{"builtin", "ourtemplate"} {
			if strings.Contains(body, name) != (name == want) {
				t.Errorf("%s sees %s", who, body)
			}
		}
	}
}

// unbuilt makes a built-in template that nobody has used yet.
func (w *tenants) unbuilt(t *testing.T, name string) {
	t.Helper()
	template := &kiln.Template{ID: kiln.NewTemplateID(), BuiltIn: true, Name: name}
	v := &kiln.Version{TemplateID: template.ID, BuildID: kiln.NewID("build_")}
	if err := w.node.store.CreateTemplate(t.Context(), template, v, store.Build{Node: "local", Deferred: true}, nil); err != nil {
		t.Fatal(err)
	}
}

// token makes a token under a name by which w.do uses it.
func (w *tenants) token(t *testing.T, name, orgID string, scopes ...kiln.Scope) {
	t.Helper()
	secret, err := w.node.store.CreateToken(t.Context(), kiln.Token{ID: "tok_" + name, OrgID: orgID, Name: name, Scopes: scopes})
	if err != nil {
		t.Fatal(err)
	}
	w.tokens[name] = secret
}

func TestScopesAreEnforced(t *testing.T) {
	w := newTenants(t)
	w.token(t, "reader", "org_ours", kiln.ScopeTemplatesRead)
	w.token(t, "builder", "org_ours", kiln.ScopeTemplatesWrite)
	capture := strings.ReplaceAll(bodies["captureTemplate"], "{sandbox}", w.ours.sandbox)
	if status, body := w.do(t, "builder", "POST", "/v1/templates/capture", capture, nil); status != 403 || !strings.Contains(body, "sandboxes:read") {
		t.Errorf("capture by who may not read a sandbox: %d %s", status, body)
	}
	w.token(t, "capturer", "org_ours", kiln.ScopeTemplatesWrite, kiln.ScopeSandboxesRead)
	if status, body := w.do(t, "capturer", "POST", "/v1/templates/capture", capture, nil); status == 403 {
		t.Errorf("capture by who may read it: %d %s", status, body)
	}
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/v1/templates/ourtemplate", 200},
		{"DELETE", "/v1/templates/ourtemplate", 403},
		{"GET", "/v1/sandboxes", 403},
		{"GET", "/v1/audit", 403},
		{"GET", "/v1/tokens", 403},
	} {
		status, body := w.do(t, "reader", c.method, c.path, "", nil)
		if status != c.want || c.want == 403 && !strings.Contains(body, "scope") {
			t.Errorf("%s %s: %d %s", c.method, c.path, status, body)
		}
	}
}
