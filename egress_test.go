package kiln_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
)

func manyCIDRs(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("%d.%d.%d.0/24", 1+i>>16, i>>8&255, i&255)
	}
	return list
}

func TestEgressPolicyFaults(t *testing.T) {
	any4 := []string{"0.0.0.0/0"}
	for name, c := range map[string]struct {
		policy kiln.EgressPolicy
		want   string // part of the message; "" means valid
	}{
		"nothing":                {kiln.EgressPolicy{}, ""},
		"as the documentation":   {kiln.EgressPolicy{Mode: kiln.EgressDenyAll, AllowCIDRs: any4, DenyCIDRs: []string{"10.0.0.0/8"}}, ""},
		"single address":         {kiln.EgressPolicy{AllowCIDRs: []string{"203.0.113.7"}, AllowPorts: []int{1, 65535}}, ""},
		"domains":                {kiln.EgressPolicy{AllowDomains: []string{"Example.COM.", "*.example.org", "_dmarc.example.org"}}, ""},
		"allow all but some":     {kiln.EgressPolicy{Mode: kiln.EgressAllowAll, DenyCIDRs: []string{"198.51.100.0/24"}}, ""},
		"10,000 entries":         {kiln.EgressPolicy{DenyCIDRs: manyCIDRs(10_000)}, ""},
		"mode":                   {kiln.EgressPolicy{Mode: "allow"}, `mode "allow"`},
		"no CIDR":                {kiln.EgressPolicy{AllowCIDRs: []string{"10.0.0/8"}}, `"10.0.0/8" is not an IPv4 range`},
		"prefix too long":        {kiln.EgressPolicy{DenyCIDRs: []string{"10.0.0.0/33"}}, `deny-cidr: "10.0.0.0/33"`},
		"name as CIDR":           {kiln.EgressPolicy{AllowCIDRs: []string{"example.com"}}, `"example.com"`},
		"empty CIDR":             {kiln.EgressPolicy{AllowCIDRs: []string{""}}, `"" is not an IPv4 range`},
		"IPv6 CIDR":              {kiln.EgressPolicy{AllowCIDRs: []string{"2001:db8::/32"}}, "IPv6"},
		"IPv6 all":               {kiln.EgressPolicy{DenyCIDRs: []string{"::/0"}}, "IPv6"},
		"IPv4 in IPv6":           {kiln.EgressPolicy{DenyCIDRs: []string{"::ffff:10.0.0.0/104"}}, "IPv6"},
		"port 0":                 {kiln.EgressPolicy{AllowCIDRs: any4, AllowPorts: []int{0}}, "allow-port 0 is not between"},
		"port 70000":             {kiln.EgressPolicy{AllowCIDRs: any4, AllowPorts: []int{443, 70000}}, "allow-port 70000"},
		"port without CIDR":      {kiln.EgressPolicy{AllowPorts: []int{443}}, "allow-port 443 without allow-cidr"},
		"contradiction":          {kiln.EgressPolicy{Mode: kiln.EgressAllowAll, AllowCIDRs: any4}, "contradicts"},
		"contradiction, domains": {kiln.EgressPolicy{Mode: kiln.EgressAllowAll, AllowDomains: []string{"a.org"}}, "contradicts"},
		"100,000 entries":        {kiln.EgressPolicy{AllowCIDRs: manyCIDRs(100_000)}, "has 100000 CIDRs; 16384 is the limit"},
		"too many ports":         {kiln.EgressPolicy{AllowCIDRs: any4, AllowPorts: make([]int, 2000)}, "2000 ports"},
		"too many domains":       {kiln.EgressPolicy{AllowDomains: make([]string, 2000)}, "2000 domains"},
		"any domain":             {kiln.EgressPolicy{AllowDomains: []string{"*"}}, "every domain"},
		"wildcard inside":        {kiln.EgressPolicy{AllowDomains: []string{"a.*.org"}}, `"a.*.org" is not a domain`},
		"URL":                    {kiln.EgressPolicy{AllowDomains: []string{"https://a.org/"}}, "is not a domain"},
		"address as domain":      {kiln.EgressPolicy{AllowDomains: []string{"203.0.113.7"}}, "address"},
		"long label":             {kiln.EgressPolicy{AllowDomains: []string{strings.Repeat("a", 64) + ".org"}}, "is not a domain"},
		"empty domain":           {kiln.EgressPolicy{AllowDomains: []string{""}}, "is not a domain"},
	} {
		err := c.policy.Validate()
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (kiln.CodeOf(err) != kiln.CodeInvalid || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want an invalid error with %q", name, err, c.want)
		}
	}
}

func TestEgressInheritance(t *testing.T) {
	cluster := kiln.EgressPolicy{Mode: kiln.EgressAllowAll, DenyCIDRs: []string{"192.0.2.0/24"}}
	template := kiln.EgressPolicy{AllowCIDRs: []string{"203.0.113.0/24"}, AllowPorts: []int{443}, DenyCIDRs: []string{"203.0.113.7/32"}}
	for name, c := range map[string]struct{ sandbox, template, want kiln.EgressPolicy }{
		"cluster only": {want: cluster},
		"template":     {template: template, want: template},
		"template denies only": {
			template: kiln.EgressPolicy{DenyCIDRs: template.DenyCIDRs},
			want:     kiln.EgressPolicy{Mode: kiln.EgressAllowAll, DenyCIDRs: template.DenyCIDRs},
		},
		"sandbox opens": {
			sandbox: kiln.EgressPolicy{Mode: kiln.EgressAllowAll}, template: template,
			want: kiln.EgressPolicy{Mode: kiln.EgressAllowAll, DenyCIDRs: template.DenyCIDRs},
		},
		"sandbox closes": {
			sandbox: kiln.EgressPolicy{Mode: kiln.EgressDenyAll}, template: template,
			want: kiln.EgressPolicy{Mode: kiln.EgressDenyAll, DenyCIDRs: template.DenyCIDRs},
		},
		"sandbox takes the denied back": {
			sandbox: kiln.EgressPolicy{DenyCIDRs: []string{}}, template: template,
			want: kiln.EgressPolicy{AllowCIDRs: template.AllowCIDRs, AllowPorts: template.AllowPorts, DenyCIDRs: []string{}},
		},
		"ports are not mixed with another's CIDRs": {
			sandbox: kiln.EgressPolicy{AllowCIDRs: []string{"198.51.100.0/24"}}, template: template,
			want: kiln.EgressPolicy{AllowCIDRs: []string{"198.51.100.0/24"}, DenyCIDRs: template.DenyCIDRs},
		},
	} {
		if got := c.sandbox.Over(c.template).Over(cluster); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
	if got := template.EffectiveMode(); got != kiln.EgressDenyAll {
		t.Errorf("allowed CIDRs imply %s", got)
	}
	if got := (kiln.EgressPolicy{}).EffectiveMode(); got != kiln.EgressAllowAll {
		t.Errorf("no policy at all is %s", got)
	}
}

// A stored policy that takes something back must still do so when it is read.
func TestEgressPolicyKeepsEmptyLists(t *testing.T) {
	for _, p := range []kiln.EgressPolicy{{}, {DenyCIDRs: []string{}}, {Mode: kiln.EgressDenyAll, AllowDomains: []string{"a.org"}}} {
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var got kiln.EgressPolicy
		if err := json.Unmarshal(b, &got); err != nil || !reflect.DeepEqual(got, p) {
			t.Errorf("%+v became %+v through %s (%v)", p, got, b, err)
		}
	}
}

func TestEgressDomains(t *testing.T) {
	p := kiln.EgressPolicy{AllowDomains: []string{"Example.com", "*.example.org."}}
	for host, want := range map[string]bool{
		"example.com": true, "www.example.com": false, "example.org": false, "a.example.org": true,
		"a.b.example.org": true, "badexample.org": false, "example.com.evil.net": false, "": false,
	} {
		if p.AllowsDomain(host) != want {
			t.Errorf("AllowsDomain(%q) = %v", host, !want)
		}
	}
}

func TestEgressSummary(t *testing.T) {
	p := kiln.EgressPolicy{AllowCIDRs: []string{"1.0.0.0/8", "2.0.0.0/8", "3.0.0.0/8", "4.0.0.0/8"}, AllowPorts: []int{80, 443}, DenyCIDRs: []string{"10.0.0.0/8"}}
	if got, want := p.String(), "deny_all allow 1.0.0.0/8,2.0.0.0/8,3.0.0.0/8,… (4) ports 80,443 deny 10.0.0.0/8"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
