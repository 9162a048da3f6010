package api

import (
	"errors"
	"strings"
	"testing"
)

func TestDetailsAreExplained(t *testing.T) {
	huge := errors.New("json: cannot unmarshal number 1e30 into Go struct field CreateSandboxRequest.ttl_seconds of type int64 (body: {})")
	if got := detailOf(huge); got != "expected an integer of 64 bits (body.ttl_seconds: 1e30)" {
		t.Error(got)
	}
	if got := detailOf(errors.New(strings.Repeat("é", 1000))); got != strings.Repeat("é", maxEcho/2)+"…" {
		t.Error(got)
	}
}
