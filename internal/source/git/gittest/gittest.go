// Package gittest gives tests real git repositories behind real servers: git's own HTTP
// backend, and git-upload-pack over SSH.
package gittest

import (
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/kilnvm/kiln/internal/testkit"
)

// Repository is a bare repository named "repo.git" below Root.
type Repository struct {
	t    testing.TB
	Root string
}

// New makes an empty repository whose HEAD is the branch main.
func New(t testing.TB) *Repository {
	t.Helper()
	testkit.RequireCommands(t, "git", "prlimit")
	r := &Repository{t: t, Root: t.TempDir()}
	r.run(nil, "init", "--quiet", "--bare", "--initial-branch=main", r.path())
	r.Git("config", "http.receivepack", "false")
	return r
}

func (r *Repository) path() string { return filepath.Join(r.Root, "repo.git") }

// Git runs git in the repository and returns what it printed.
func (r *Repository) Git(args ...string) string {
	r.t.Helper()
	return r.run(nil, append([]string{"--git-dir", r.path()}, args...)...)
}

// GitInput is Git with something on standard input.
func (r *Repository) GitInput(in string, args ...string) string {
	r.t.Helper()
	return r.run(strings.NewReader(in), append([]string{"--git-dir", r.path()}, args...)...)
}

func (r *Repository) run(in io.Reader, args ...string) string {
	r.t.Helper()
	return r.runWith(nil, in, args...)
}

func (r *Repository) runWith(env []string, in io.Reader, args ...string) string {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), "git", args...)
	cmd.Stdin = in
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.org",
		"GIT_COMMITTER_NAME=c", "GIT_COMMITTER_EMAIL=c@example.org")
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// Commit makes files the whole content of a branch and returns the commit. A name that
// ends in "*" is executable, one that ends in "@" a symlink to its content, and one that
// ends in "!" a submodule at that commit.
func (r *Repository) Commit(branch string, files map[string]string) string {
	r.t.Helper()
	index := filepath.Join(r.t.TempDir(), "index")
	work := func(args ...string) string {
		r.t.Helper()
		return r.runWith([]string{"GIT_INDEX_FILE=" + index}, nil, append([]string{"--git-dir", r.path()}, args...)...)
	}
	for name, content := range files {
		mode, object := "100644", ""
		switch {
		case strings.HasSuffix(name, "*"):
			mode = "100755"
		case strings.HasSuffix(name, "@"):
			mode = "120000"
		case strings.HasSuffix(name, "!"):
			mode, object = "160000", content
		}
		if object == "" {
			object = r.GitInput(content, "hash-object", "-w", "--stdin")
		}
		work("update-index", "--add", "--cacheinfo", mode+","+object+","+strings.TrimRight(name, "*@!"))
	}
	return r.CommitTree(branch, work("write-tree"))
}

// CommitTree makes a tree object the content of a branch and returns the commit.
func (r *Repository) CommitTree(branch, tree string) string {
	r.t.Helper()
	commit := r.Git("commit-tree", "-m", "a commit", tree)
	r.Git("update-ref", "refs/heads/"+branch, commit)
	return commit
}

// ServeHTTP serves the repository over HTTP and returns its URL. With a token every
// request must have it as the password.
func (r *Repository) ServeHTTP(token string) string {
	r.t.Helper()
	backend := &cgi.Handler{
		Path:       "/usr/lib/git-core/git-http-backend",
		Env:        []string{"GIT_PROJECT_ROOT=" + r.Root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null"},
		InheritEnv: []string{"PATH"}, Stderr: io.Discard,
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if _, password, _ := req.BasicAuth(); token != "" && password != token {
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		if v := req.Header.Get("Git-Protocol"); v != "" {
			c := *backend
			c.Env = append(append([]string(nil), backend.Env...), "GIT_PROTOCOL="+v)
			c.ServeHTTP(w, req)
			return
		}
		backend.ServeHTTP(w, req)
	}))
	r.t.Cleanup(s.Close)
	return s.URL + "/repo.git"
}

// SSH is an SSH server that lets one key in and runs git-upload-pack only.
type SSH struct {
	URL        string
	Key        string // the private key that is let in
	KnownHosts string
}

// ServeSSH serves the repository over SSH.
func (r *Repository) ServeSSH() SSH {
	r.t.Helper()
	hostKey, _ := newKey(r.t)
	userKey, private := newKey(r.t)
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if string(key.Marshal()) != string(userKey.PublicKey().Marshal()) {
			return nil, errors.New("unknown key")
		}
		return nil, nil
	}}
	config.AddHostKey(hostKey)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go r.session(conn, config)
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return SSH{
		URL: "ssh://git@127.0.0.1:" + port + "/repo.git", Key: private,
		KnownHosts: "[127.0.0.1]:" + port + " " + string(ssh.MarshalAuthorizedKey(hostKey.PublicKey())),
	}
}

func newKey(t testing.TB) (ssh.Signer, string) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer, string(pem.EncodeToMemory(block))
}

func (r *Repository) session(conn net.Conn, config *ssh.ServerConfig) {
	defer conn.Close()
	server, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	defer server.Close()
	go ssh.DiscardRequests(requests)
	for c := range channels {
		channel, requests, err := c.Accept()
		if err != nil {
			return
		}
		for req := range requests {
			ok := req.Type == "exec" && strings.Contains(string(req.Payload), "git-upload-pack '/repo.git'")
			_ = req.Reply(ok || req.Type == "env", nil)
			if ok {
				r.uploadPack(channel)
				break
			}
		}
		channel.Close()
	}
}

func (r *Repository) uploadPack(channel ssh.Channel) {
	cmd := exec.Command("git", "upload-pack", r.path())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = channel, channel, channel.Stderr()
	status := struct{ Code uint32 }{}
	if cmd.Run() != nil {
		status.Code = 1
	}
	_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(status))
}
