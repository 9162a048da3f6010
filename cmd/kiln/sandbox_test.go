package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
)

func TestNoTrafficIsShown(t *testing.T) {
	var out bytes.Buffer
	if err := printSandbox(&out, &api.Sandbox{Network: &kiln.NetworkUse{}}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "0 bytes sent, 0 received") || !strings.Contains(out.String(), "0 packets, 0 names, 0 frames") {
		t.Errorf("a sandbox without traffic:\n%s", out.String())
	}
}
