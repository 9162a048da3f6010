package api

import (
	"flag"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "rewrite docs/openapi.json")

// TestOpenAPIDrift holds docs/openapi.json against the code. `go test -update` rewrites it.
func TestOpenAPIDrift(t *testing.T) {
	const file = "../../docs/openapi.json"
	got, err := New(Options{Version: "1", SpoolDir: t.TempDir()}).OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s is out of date: run go test ./internal/api -run OpenAPI -update", file)
	}
}
