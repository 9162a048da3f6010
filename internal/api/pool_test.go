package api

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
)

// fakePool has one shelf and remembers what was asked for.
type fakePool struct{ asked []string }

func (p *fakePool) Warm(_ context.Context, who kiln.Principal) ([]kiln.WarmShelf, error) {
	if who.OrgID != kiln.LocalOrgID {
		return nil, nil
	}
	return []kiln.WarmShelf{{TemplateID: "tmpl_a", OrgID: who.OrgID, Template: "a", Version: 2, Size: "s", Set: 1, Demand: 2, Ready: 1, Hits: 3, Misses: 4}}, nil
}

func (p *fakePool) SetWarm(_ context.Context, who kiln.Principal, template, size string, slots int) (kiln.WarmTarget, error) {
	if template != "a" {
		return kiln.WarmTarget{}, kiln.Errorf(kiln.CodeNotFound, "template %q does not exist", template)
	}
	p.asked = append(p.asked, fmt.Sprintf("%s %s %q %d", who.OrgID, template, size, slots))
	return kiln.WarmTarget{OrgID: who.OrgID, TemplateID: "tmpl_a", Size: "s", Slots: slots}, nil
}

func TestPool(t *testing.T) {
	pool := &fakePool{}
	ts := newTestServer(t, func(o *Options) { o.Pool = pool })
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/v1/pool", "", 200, `[{"template_id":"tmpl_a","template":"a","version":2,"size":"s","set":1,"demand":2,"ready":1,"hits":3,"misses":4,"spawned":0,"spawned_hits":0}]`},
		{"PUT", "/v1/pool/a", `{"slots":3}`, 200, `{"template_id":"tmpl_a","size":"s","slots":3}`},
		{"PUT", "/v1/pool/a", `{"slots":0,"size":"l"}`, 200, `"slots":0`},
		{"PUT", "/v1/pool/b", `{"slots":1}`, 404, `does not exist`},
		{"PUT", "/v1/pool/a", `{"slots":-1}`, 400, `slots`},
		{"PUT", "/v1/pool/a", `{"slots":1001}`, 400, `slots`},
		{"PUT", "/v1/pool/a", `{}`, 400, `slots`},
	} {
		status, body := ts.do(t, c.method, c.path, "application/json", strings.NewReader(c.body))
		if status != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s %s %s: %d %s, want %d with %s", c.method, c.path, c.body, status, body, c.status, c.want)
		}
	}
	if got, want := strings.Join(pool.asked, "; "), kiln.LocalOrgID+` a "" 3; `+kiln.LocalOrgID+` a "l" 0`; got != want {
		t.Errorf("asked for %s, want %s", got, want)
	}
}
