package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/config"
	"github.com/kilnvm/kiln/internal/source"
)

// anybody lets everybody in.
type anybody struct{}

func (anybody) Authenticate(context.Context, string) (kiln.Principal, error) {
	return kiln.Principal{OrgID: kiln.LocalOrgID, Scopes: []kiln.Scope{kiln.ScopeAdmin}}, nil
}

// tomlOf writes a policy as an egress table.
func tomlOf(header string, p kiln.EgressPolicy) string {
	text := header + "\n"
	for name, list := range map[string]any{
		"allow_cidrs": p.AllowCIDRs, "deny_cidrs": p.DenyCIDRs, "allow_ports": p.AllowPorts, "allow_domains": p.AllowDomains,
	} {
		if b, _ := json.Marshal(list); string(b) != "null" {
			text += fmt.Sprintf("%s = %s\n", name, b)
		}
	}
	if p.Mode != "" {
		text += fmt.Sprintf("mode = %q\n", p.Mode)
	}
	return text
}

func flagsOf(prefix string, p kiln.EgressPolicy) []string {
	var flags []string
	add := func(name string, values []string) {
		for _, v := range values {
			flags = append(flags, "--"+prefix+name, v)
		}
	}
	if p.Mode != "" {
		add("mode", []string{string(p.Mode)})
	}
	add("allow-cidr", p.AllowCIDRs)
	add("deny-cidr", p.DenyCIDRs)
	add("allow-domain", p.AllowDomains)
	for _, port := range p.AllowPorts {
		add("allow-port", []string{fmt.Sprint(port)})
	}
	return flags
}

// A policy that cannot be kept is refused in the same words wherever it is written down, and
// before anything happens.
func TestBadEgressAtEveryDoor(t *testing.T) {
	many := slices.Repeat([]string{"1.1.1.1"}, 100_000)
	any4 := []string{"0.0.0.0/0"}
	rest := api.New(api.Options{Version: "1", Auth: anybody{}, SpoolDir: t.TempDir()}).Handler()
	for name, c := range map[string]struct {
		policy kiln.EgressPolicy
		want   string
	}{
		"prefix too long":            {kiln.EgressPolicy{AllowCIDRs: []string{"10.0.0.0/33"}}, `"10.0.0.0/33" is not an IPv4 range`},
		"no address":                 {kiln.EgressPolicy{DenyCIDRs: []string{"ten.0.0.0/8"}}, `"ten.0.0.0/8" is not an IPv4 range`},
		"octet too large":            {kiln.EgressPolicy{AllowCIDRs: []string{"10.0.0.256"}}, `"10.0.0.256" is not an IPv4 range`},
		"empty range":                {kiln.EgressPolicy{AllowCIDRs: []string{""}}, `"" is not an IPv4 range`},
		"IPv6 range":                 {kiln.EgressPolicy{AllowCIDRs: []string{"2001:db8::/32"}}, `"2001:db8::/32" is an IPv6 range`},
		"IPv4 in IPv6":               {kiln.EgressPolicy{DenyCIDRs: []string{"::ffff:10.0.0.1"}}, "is an IPv6 range"},
		"port 0":                     {kiln.EgressPolicy{AllowCIDRs: any4, AllowPorts: []int{0}}, "allow-port 0 is not between 1 and 65535"},
		"port 70000":                 {kiln.EgressPolicy{AllowCIDRs: any4, AllowPorts: []int{443, 70000}}, "allow-port 70000 is not between 1 and 65535"},
		"port below 0":               {kiln.EgressPolicy{AllowCIDRs: any4, AllowPorts: []int{-1}}, "allow-port -1 is not between 1 and 65535"},
		"port without a range":       {kiln.EgressPolicy{AllowPorts: []int{443}}, "allow-port 443 without allow-cidr"},
		"port with a domain only":    {kiln.EgressPolicy{AllowDomains: []string{"a.example"}, AllowPorts: []int{443}}, "allow-port 443 without allow-cidr"},
		"100,000 ranges":             {kiln.EgressPolicy{AllowCIDRs: many}, "has 100000 CIDRs; 16384 is the limit"},
		"unknown mode":               {kiln.EgressPolicy{Mode: "open"}, `mode "open" is neither allow_all nor deny_all`},
		"everything and some of it":  {kiln.EgressPolicy{Mode: kiln.EgressAllowAll, AllowCIDRs: any4}, "mode allow_all contradicts"},
		"domain with a scheme":       {kiln.EgressPolicy{AllowDomains: []string{"https://a.example"}}, `"https://a.example" is not a domain`},
		"domain that is an address":  {kiln.EgressPolicy{AllowDomains: []string{"10.0.0.1"}}, `"10.0.0.1" is an address`},
		"domain that is every name":  {kiln.EgressPolicy{AllowDomains: []string{"*"}}, "would allow every domain"},
		"domain with a star between": {kiln.EgressPolicy{AllowDomains: []string{"a.*.example"}}, `"a.*.example" is not a domain`},
	} {
		t.Run(name, func(t *testing.T) {
			says := func(door, text string) {
				t.Helper()
				if !strings.Contains(text, c.want) || len(text) > 1000 {
					t.Errorf("%s says %.300q, want %q in few words", door, text, c.want)
				}
			}
			env := map[string]string{"KILN_DATA_DIR": t.TempDir()}
			for _, command := range [][]string{
				append([]string{"sandbox", "create", "-t", "x"}, flagsOf("egress-", c.policy)...),
				append([]string{"sandbox", "egress", "set", "i1"}, flagsOf("", c.policy)...),
				append([]string{"templates", "build", "x", t.TempDir()}, flagsOf("egress-", c.policy)...),
			} {
				r := runKiln(env, command...)
				says(strings.Join(command[:3], " "), r.stderr)
				if r.code != 2 {
					t.Errorf("%v: exit code %d", command[:3], r.code)
				}
			}

			dir := t.TempDir()
			for file, text := range map[string]string{
				"Dockerfile": "FROM scratch\n", "kiln-template.toml": tomlOf("[egress]", c.policy), "kiln.toml": tomlOf("[network.egress]", c.policy),
			} {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := source.Open(t.Context(), dir, kiln.BuildOptions{}); err == nil {
				t.Error("kiln-template.toml is taken")
			} else {
				says("kiln-template.toml", err.Error())
				if !strings.Contains(err.Error(), "kiln-template.toml:") {
					t.Errorf("the line is not named: %v", err)
				}
			}
			cfg, err := config.Load(filepath.Join(dir, "kiln.toml"))
			if err == nil {
				err = cfg.Validate()
			}
			says("kiln.toml", fmt.Sprint(err))

			body, err := json.Marshal(c.policy)
			if err != nil {
				t.Fatal(err)
			}
			w := httptest.NewRecorder()
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPut, "/v1/sandboxes/i1/egress", strings.NewReader(string(body)))
			r.Header.Set("Authorization", "Bearer any")
			r.Header.Set("Content-Type", "application/json")
			rest.ServeHTTP(w, r)
			var answer api.Error
			if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != http.StatusBadRequest || answer.Code != kiln.CodeInvalid {
				t.Errorf("the API answers %d %+v, %v", w.Code, answer, err)
			}
			says("the API", answer.Message)
		})
	}
}
