package api

import (
	"net/http"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
)

func TestDiffRoute(t *testing.T) {
	ts := newTestServer(t, nil)
	ts.templates.byName["my-ml"] = &kiln.Template{Name: "my-ml", OrgID: kiln.LocalOrgID}
	ts.templates.byName["hidden"] = &kiln.Template{Name: "hidden", OrgID: "org2"}
	for _, c := range []struct {
		path   string
		status int
		want   string
	}{
		{"?a=my-ml@1&b=my-ml@2", http.StatusOK, `"a":{"template":"my-ml","version":1`},
		{"?a=my-ml@1&b=my-ml@2", http.StatusOK, `"differences":[{"path":"etc/x","field":"mode","a":"0644","b":"0600"}]`},
		{"?a=my-ml@0&b=my-ml@2", http.StatusBadRequest, "version number"},
		{"?a=my-ml@1", http.StatusBadRequest, "query.b"},
		{"?a=my-ml@1&b=hidden", http.StatusNotFound, "does not exist"},
	} {
		status, body := ts.do(t, http.MethodGet, "/v1/rootfs/diff"+c.path, "", nil)
		if status != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s: status %d, want %d with %q: %s", c.path, status, c.status, c.want, body)
		}
	}
}
