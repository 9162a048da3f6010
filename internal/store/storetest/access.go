package storetest

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
)

func (f fixture) org(t *testing.T, name string) kiln.Org {
	t.Helper()
	o := kiln.Org{ID: kiln.NewOrgID(), Name: name, CreatedAt: at(0)}
	if err := f.CreateOrg(f.ctx, o); err != nil {
		t.Fatal(err)
	}
	return o
}

func testOrgs(t *testing.T, f fixture) {
	b, a := f.org(t, "b"), f.org(t, "a")
	wantCode(t, "same name", f.CreateOrg(f.ctx, kiln.Org{ID: kiln.NewOrgID(), Name: "a"}), kiln.CodeConflict)
	list, err := f.Orgs(f.ctx)
	if err != nil || len(list) != 3 || list[0] != a || list[1] != b || list[2].ID != kiln.LocalOrgID {
		t.Errorf("list %+v, %v", list, err)
	}
	for _, ref := range []string{a.ID, a.Name} {
		if got, err := f.Org(f.ctx, ref); err != nil || got != a {
			t.Errorf("%s: %+v, %v", ref, got, err)
		}
	}
	_, err = f.Org(f.ctx, "c")
	wantCode(t, "unknown", err, kiln.CodeNotFound)
	_, err = f.DeleteOrg(f.ctx, "c")
	wantCode(t, "delete unknown", err, kiln.CodeNotFound)
	_, err = f.DeleteOrg(f.ctx, kiln.LocalOrgID)
	wantCode(t, "delete the operator's", err, kiln.CodeForbidden)

	f.create(t, a.ID, "x")
	_, err = f.DeleteOrg(f.ctx, "a")
	wantCode(t, "delete with a template", err, kiln.CodeConflict)
	if _, err := f.DeleteTemplate(f.ctx, a.ID, "x"); err != nil {
		t.Fatal(err)
	}
	secret, err := f.CreateToken(f.ctx, kiln.Token{ID: "tok_1", OrgID: a.ID, Name: "n"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := f.DeleteOrg(f.ctx, "a"); err != nil || got != a {
		t.Errorf("delete: %+v, %v", got, err)
	}
	_, err = f.Authenticate(f.ctx, secret)
	wantCode(t, "token of a deleted organisation", err, kiln.CodeUnauthorized)
	_, err = f.CreateToken(f.ctx, kiln.Token{ID: "tok_2", OrgID: a.ID, Name: "n"})
	wantCode(t, "new token of a deleted organisation", err, kiln.CodeNotFound)
}

func testTokens(t *testing.T, f fixture) {
	o := f.org(t, "a")
	tok := kiln.Token{ID: "tok_1", OrgID: o.ID, Name: "ci", Scopes: []kiln.Scope{kiln.ScopeTemplatesRead, kiln.ScopeSandboxesWrite}, CreatedAt: at(0), ExpiresAt: time.Now().Add(time.Hour).UTC().Truncate(time.Millisecond)}
	secret, err := f.CreateToken(f.ctx, tok)
	if err != nil {
		t.Fatal(err)
	}
	want := kiln.Principal{OrgID: o.ID, TokenID: "tok_1", TokenName: "ci", Scopes: tok.Scopes, ExpiresAt: tok.ExpiresAt}
	if got, err := f.Authenticate(f.ctx, secret); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	same := tok
	same.ID = "tok_x"
	_, err = f.CreateToken(f.ctx, same)
	wantCode(t, "same name", err, kiln.CodeConflict)
	expired, err := f.CreateToken(f.ctx, kiln.Token{ID: "tok_2", OrgID: o.ID, Name: "old", CreatedAt: at(1), ExpiresAt: at(1).AddDate(-10, 0, 0)})
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]string{"none": "", "wrong": secret + "x", "cut": secret[:10], "expired": expired} {
		_, err := f.Authenticate(f.ctx, s)
		wantCode(t, name, err, kiln.CodeUnauthorized)
	}
	list, err := f.Tokens(f.ctx, o.ID)
	if err != nil || len(list) != 2 || !reflect.DeepEqual(list[0], tok) {
		t.Errorf("list %+v, %v", list, err)
	}
	old := kiln.Token{ID: "tok_3", OrgID: o.ID, Name: "old", CreatedAt: at(2)}
	if _, err := f.CreateToken(f.ctx, old); err != nil {
		t.Errorf("the name of an expired token: %v", err)
	}
	if list, err := f.Tokens(f.ctx, o.ID); err != nil || len(list) != 2 || list[1].ID != "tok_3" {
		t.Errorf("after the name was given again: %+v, %v", list, err)
	}
	other := f.org(t, "b")
	if list, err := f.Tokens(f.ctx, other.ID); err != nil || len(list) != 0 {
		t.Errorf("another organisation: %+v, %v", list, err)
	}
	_, err = f.RevokeToken(f.ctx, other.ID, "tok_1")
	wantCode(t, "revoke another organisation's", err, kiln.CodeNotFound)
	if id, err := f.RevokeToken(f.ctx, o.ID, "ci"); err != nil || id != "tok_1" {
		t.Fatal(id, err)
	}
	_, err = f.Authenticate(f.ctx, secret)
	wantCode(t, "revoked", err, kiln.CodeUnauthorized)
}

func testAudit(t *testing.T, f fixture) {
	var want []string
	for i := range 7 {
		e := kiln.AuditEvent{
			ID: fmt.Sprintf("aud_%d", i), OrgID: []string{"a", "b"}[i%2], Time: at(i / 3), TokenID: "tok_1", TokenName: "n", Address: "::1",
			Action: "rollbackTemplate", Target: "/templates/x", Detail: map[string]string{"from": "2"},
		}
		if err := f.RecordAudit(f.ctx, e); err != nil {
			t.Fatal(err)
		}
		if e.OrgID == "a" {
			want = append([]string{e.ID}, want...)
		}
	}
	for limit := 1; limit < 6; limit++ {
		var got []string
		before := ""
		for {
			page, err := f.Audit(f.ctx, "a", before, limit)
			if err != nil || len(page) > limit {
				t.Fatal(len(page), err)
			}
			for _, e := range page {
				got = append(got, e.ID)
				if e.OrgID != "a" || e.Detail["from"] != "2" || e.Time.IsZero() {
					t.Errorf("event %+v", e)
				}
			}
			if len(page) < limit {
				break
			}
			before = page[limit-1].ID
		}
		if !slices.Equal(got, want) {
			t.Errorf("limit %d: got %q, want %q", limit, got, want)
		}
	}
	if all, err := f.Audit(f.ctx, "", "", 100); err != nil || len(all) != 7 {
		t.Errorf("all: %d, %v", len(all), err)
	}
	if all, err := f.Audit(f.ctx, "", "aud_1", 100); err != nil || len(all) != 1 {
		t.Errorf("all before the second: %d, %v", len(all), err)
	}
	for _, before := range []string{"aud_9", "aud_1", "-3", "'", "aud_0\x00", "aud_\xff"} { // the second is another's
		_, err := f.Audit(f.ctx, "a", before, 100)
		wantCode(t, "before "+before, err, kiln.CodeInvalid)
	}
}
