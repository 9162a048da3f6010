package api

import (
	"encoding/json"
	"testing"

	"github.com/kilnvm/kiln"
)

// TestListDescribesWhatServes lists a template while its rebuild has failed: what sandboxes
// get is described, and the newest version said apart.
func TestListDescribesWhatServes(t *testing.T) {
	ts := newTestServer(t, nil)
	ts.templates.byName["a"] = &kiln.Template{
		ID: "tmpl_a", Name: "a", Current: 1,
		Serving: &kiln.Version{
			Number: 1, Status: kiln.VersionReady, Rootfs: kiln.Blob{Digest: "sha256:1", Size: 7}, Metadata: kiln.Metadata{DefaultSize: "shared-cpu-2x"},
			BaseImages: []kiln.BaseImage{{Name: "debian"}},
		},
		Latest: &kiln.Version{Number: 2, Status: kiln.VersionFailed, BuildError: &kiln.BuildError{Message: "no"}},
	}
	for path, into := range map[string]func(body string) (Template, error){
		"/v1/templates": func(body string) (t Template, err error) {
			list := []Template{}
			if err = json.Unmarshal([]byte(body), &list); err == nil && len(list) == 1 {
				t = list[0]
			}
			return t, err
		},
		"/v1/templates/a": func(body string) (t Template, err error) { return t, json.Unmarshal([]byte(body), &t) },
	} {
		code, body := ts.do(t, "GET", path, "", nil)
		got, err := into(body)
		if code != 200 || err != nil {
			t.Fatalf("%s: %d %s, %v", path, code, body, err)
		}
		if got.Status != kiln.VersionReady || got.RootfsPath != "sha256:1" || got.SizeBytes != 7 || got.DefaultSize != "shared-cpu-2x" || got.CPU != 2 || got.Base != "debian" {
			t.Errorf("%s: %s", path, body)
		}
		if got.Latest.Version != 2 || got.Latest.Status != BuildFailed || got.BuildError == nil {
			t.Errorf("%s: %s", path, body)
		}
	}
}
