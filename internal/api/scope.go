package api

import (
	"net/http"
	"regexp"
	"strings"

	"github.com/kilnvm/kiln"
)

// versionPrefix is what routes of any API version begin with.
var versionPrefix = regexp.MustCompile(`^/v[0-9]+/`)

// kinds maps the first segment of a path to the kind of thing that scopes name. What is
// not listed needs the admin scope.
var kinds = map[string]string{
	"templates": "templates",
	"catalog":   "templates",
	"versions":  "templates",
	"tags":      "templates", // of a version
	"rootfs":    "templates", // of a version
	"sandboxes": "sandboxes",
	"snapshots": "sandboxes", // of one
	"sizes":     "sandboxes",
	"pool":      "templates", // kept ready of one
	"usage":     "sandboxes",
}

// scopeOf returns what a token must allow for a request to be answered, "" for what every
// token does.
func scopeOf(r *http.Request) kiln.Scope {
	path := r.URL.Path
	if at := versionPrefix.FindString(path); at != "" {
		path = path[len(at)-1:]
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if first == "whoami" {
		return ""
	}
	kind, known := kinds[first]
	if !known {
		return kiln.ScopeAdmin
	}
	if writes(r) {
		return kiln.Scope(kind + ":write")
	}
	return kiln.Scope(kind + ":read")
}

// writes reports whether a request may change something. A WebSocket carries commands,
// although it begins with GET.
func writes(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return true
	}
	return strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}
