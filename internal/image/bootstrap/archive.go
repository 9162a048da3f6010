package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// archive is where a release's packages come from.
type archive struct {
	target
	main, security string // URIs
	keyring        string // on this machine
}

// newArchive takes the host's own package sources when it runs the same distribution
// (a company mirror, say), else the public ones.
func newArchive(ctx context.Context, t target) archive {
	a := archive{target: t, main: t.family.archive, security: t.family.security, keyring: t.family.keyring}
	id, codename := hostRelease()
	if id != t.family.id {
		return a
	}
	if uri := hostSource(ctx, codename); uri != "" {
		a.main = uri
	}
	if uri := hostSource(ctx, codename+"-security"); uri != "" {
		a.security = uri
	}
	return a
}

// hostRelease returns ID and VERSION_CODENAME of os-release(5).
func hostRelease() (id, codename string) {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", ""
	}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(value, `"'`)
		switch key {
		case "ID":
			id = value
		case "VERSION_CODENAME":
			codename = value
		}
	}
	return id, codename
}

// hostSource asks apt for the URI from which the host takes a suite. Only HTTP will do:
// what the image is to use later must not depend on this machine.
func hostSource(ctx context.Context, suite string) string {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages").Output()
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(out)) {
		release, uri, ok := strings.Cut(strings.TrimSpace(line), " ")
		if ok && release == suite && (strings.HasPrefix(uri, "http://") || strings.HasPrefix(uri, "https://")) {
			return strings.TrimSuffix(uri, "/")
		}
	}
	return ""
}

// suite is one suite of an archive and the URI it comes from.
type suite struct{ uri, name string }

func (a archive) suites() []suite {
	return []suite{
		{a.main, a.codename},
		{a.main, a.codename + "-updates"},
		{a.security, a.codename + "-security"},
	}
}

// sourceLines are one-line sources (sources.list(5)) for use on this machine.
func (a archive) sourceLines() []string {
	var lines []string
	for _, s := range a.suites() {
		lines = append(lines, fmt.Sprintf("deb [signed-by=%s] %s %s %s", a.keyring, s.uri, s.name, strings.Join(a.family.components, " ")))
	}
	return lines
}

// sources is the deb822 file that the image gets.
func (a archive) sources() string {
	var b strings.Builder
	for _, group := range []struct{ uri, suites string }{
		{a.main, a.codename + " " + a.codename + "-updates"},
		{a.security, a.codename + "-security"},
	} {
		fmt.Fprintf(&b, "Types: deb\nURIs: %s\nSuites: %s\nComponents: %s\nSigned-By: %s\n\n",
			group.uri, group.suites, strings.Join(a.family.components, " "), a.family.keyring)
	}
	return b.String()
}

// https reports whether the image needs certificates to reach its own sources.
func (a archive) https() bool {
	return strings.HasPrefix(a.main, "https://") || strings.HasPrefix(a.security, "https://")
}

// published returns when the newest of the suites was published. It doubles as a quick
// test that the archive can be reached; apt's own proxy settings apply.
func (a archive) published(ctx context.Context, dir string) (time.Time, error) {
	var newest time.Time
	for i, s := range a.suites() {
		path := filepath.Join(dir, fmt.Sprintf("InRelease.%d", i))
		uri := s.uri + "/dists/" + s.name + "/InRelease"
		cmd := exec.CommandContext(ctx, "/usr/lib/apt/apt-helper",
			"-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=5", "-o", "Acquire::https::Timeout=5",
			"download-file", uri, path)
		if out, err := cmd.CombinedOutput(); err != nil {
			return time.Time{}, fmt.Errorf("package archive %s cannot be reached: %s", uri, lastLine(out))
		}
		date, err := releaseDate(path)
		if err != nil {
			return time.Time{}, fmt.Errorf("package archive %s: %w", uri, err)
		}
		if date.After(newest) {
			newest = date
		}
	}
	return newest, nil
}

func releaseDate(path string) (time.Time, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return time.Time{}, err
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "Date: "); ok {
			return time.Parse(time.RFC1123, value)
		}
	}
	return time.Time{}, errors.New("InRelease has no date")
}

func lastLine(out []byte) string {
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	return string(lines[len(lines)-1])
}
