package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnvm/kiln/internal/source/git/gittest"
)

// TestSources makes templates of a private git repository, of an existing image and of a
// running sandbox, on one server.
func TestSources(t *testing.T) {
	const token = "t0ken-of-the-test"
	repo := gittest.New(t)
	repo.Commit("main", map[string]string{
		"app/Dockerfile":         "FROM debian:bookworm-slim\nCOPY note /note\nUSER nobody\nENV FROM=git\n",
		"app/note":               "first\n",
		"app/kiln-template.toml": "description = \"from git\"\n[limits]\nops_per_sec = 5000\n",
	})
	url := repo.ServeHTTP(token)
	s := newServer(t)
	secret := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(secret, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	if r := s.kiln("templates", "build", "g", "--repo", url, "--dir", "app"); r.code == 0 || !strings.Contains(r.stderr, "--git-token-file") {
		t.Errorf("without a token: %d\n%s", r.code, r.stderr)
	}
	s.must("templates", "build", "g", "--repo", url, "--ref", "main", "--dir", "app", "--git-token-file", secret, "--egress-mode", "deny_all")
	if out := s.must("templates", "rebuild", "g", "--git-token-file", secret); !strings.Contains(out, "no change") {
		t.Errorf("rebuild without news: %s", out)
	}
	shown := s.must("templates", "show", "g")
	for _, want := range []string{url, "main", "from git", "deny_all", "5000 operations/s"} {
		if !strings.Contains(shown, want) {
			t.Errorf("show does not say %q:\n%s", want, shown)
		}
	}
	s.must("templates", "update-quota", "g", "--disk-size-mb", "256")

	id := strings.TrimSpace(s.must("sandbox", "create", "-t", "g"))
	if out := s.must("sandbox", "status", id); !strings.Contains(out, "deny_all") || !strings.Contains(out, "256 MiB") {
		t.Errorf("the sandbox has not inherited:\n%s", out)
	}
	s.must("sandbox", "exec", "--user", "root", id, "--", "sh", "-c", "echo changed > /note; mkdir -p /made && echo 1 > /made/file && chown 7:8 /made/file && ln /made/file /made/again; rm /etc/issue")
	s.must("sandbox", "pause", id)
	s.must("templates", "capture", "c", "--sandbox", id)
	if out := s.must("sandbox", "status", id); !strings.Contains(out, "running") {
		t.Errorf("after a capture the paused sandbox is\n%s", out)
	}
	if out := s.must("templates", "capture", "c", "--sandbox", id); !strings.Contains(out, "no change: c stays at version 1") {
		t.Errorf("capture of what has not changed: %s", out)
	}
	s.must("sandbox", "destroy", id)
	changes := s.must("audit")
	for _, want := range []string{"captureTemplate", "sandbox=" + id + " template=c version=1", "updateTemplateQuota", "disk_size_mb=256"} {
		if !strings.Contains(changes, want) {
			t.Errorf("the audit log does not say %q:\n%s", want, changes)
		}
	}
	out := s.must("sandbox", "run", "-t", "c", "--", "sh", "-c",
		"cat /note; stat -c '%u:%g %h' /made/again; test -e /etc/issue || echo no issue; echo $FROM; id -un; test \"$(cat /etc/hostname)\" != "+id+" && echo own name")
	if want := "changed\n7:8 2\nno issue\ngit\nnobody\nown name\n"; out != want {
		t.Errorf("the captured template has\n%swant\n%s", out, want)
	}

	s.must("templates", "build", "i", "--image", "debian:bookworm-slim")
	if out := s.must("sandbox", "run", "-t", "i", "--", "cat", "/etc/debian_version"); !strings.HasPrefix(out, "12") {
		t.Errorf("debian %q", out)
	}
	if r := s.kiln("templates", "build", "n", "--image", "registry.invalid/none"); r.code == 0 || !strings.Contains(r.stderr, "registry.invalid") {
		t.Errorf("an image that is not there: %d\n%s", r.code, r.stderr)
	}
	if log := s.logText(); strings.Contains(log, token) {
		t.Errorf("the server's log holds the token:\n%s", log)
	}
}
