package network_test

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/network"
	"github.com/kilnvm/kiln/internal/network/networktest"
	"github.com/kilnvm/kiln/internal/testkit"
)

var update = flag.Bool("update", false, "rewrite testdata/*.nft")

// The exact rules, as nft prints what the kernel has.
func TestGoldenRules(t *testing.T) {
	testkit.RequireCommands(t, "nft")
	w := networktest.New(t)
	slot := acquire(t, w.Pool(t, network.Settings{Prepared: 1, Open: []string{networktest.PrivateAddr}}), "a", kiln.EgressPolicy{})
	ns, err := netns.GetFromPath(slot.Config().Namespace)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	golden(t, "host", w.HostRules(t))
	for name, policy := range map[string]kiln.EgressPolicy{
		"allow_all": {Mode: kiln.EgressAllowAll},
		"deny_all":  {Mode: kiln.EgressDenyAll},
		"ports":     {AllowCIDRs: []string{"198.51.100.0/25", "198.51.100.128/25"}, AllowPorts: []int{443, 80}, DenyCIDRs: []string{"198.51.100.7"}},
		"domains":   {AllowDomains: []string{"example.com", "*.example.com"}},
	} {
		set(t, slot, policy)
		golden(t, name, w.Rules(t, ns))
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	// The number of this server among those of the host varies.
	got = numbers(got)
	path := filepath.Join("testdata", name+".nft")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; `go test -run Golden -update` rewrites it. The rules are:\n%s", path, got)
	}
}

// numbers makes rules of the server with any number those of number 0.
func numbers(rules string) string {
	var out []string
	for line := range strings.Lines(rules) {
		line = tableNumber.ReplaceAllString(line, "kiln-N ")
		line = linkNumber.ReplaceAllString(line, `"kilnN-*"`)
		out = append(out, blockNumber.ReplaceAllString(line, "10.BLOCK"))
	}
	return strings.Join(out, "")
}

var (
	tableNumber = regexp.MustCompile(`kiln-[0-9]+ `)
	linkNumber  = regexp.MustCompile(`"kiln[0-9]+-\*"`)
	blockNumber = regexp.MustCompile(`10\.[0-9]+\.[0-9]+\.0/18`)
)
