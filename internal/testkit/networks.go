package testkit

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Where servers reserve the numbers of their networks, and where namespaces have names.
const (
	networkRunDir = "/run/kiln/network"
	netnsDir      = "/run/netns"
)

// networksLeft returns what servers with a data directory below dir left: their numbers and
// the network namespaces that are named by them. Those of other test processes, which may
// run at the same time, have numbers of their own.
func networksLeft(dir string) []string {
	files, _ := filepath.Glob(filepath.Join(networkRunDir, "*"))
	var left []string
	for _, f := range files {
		owner, err := os.ReadFile(f)
		if err != nil || !strings.HasPrefix(string(owner), dir+"/") {
			continue
		}
		left = append(left, fmt.Sprintf("network number %s of %s", filepath.Base(f), strings.TrimSpace(string(owner))))
		namespaces, _ := filepath.Glob(filepath.Join(netnsDir, "kiln-"+filepath.Base(f)+"-*"))
		for _, ns := range namespaces {
			left = append(left, "network namespace "+filepath.Base(ns))
		}
	}
	return left
}
