package git_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/source"
	"github.com/kilnvm/kiln/internal/source/git"
	"github.com/kilnvm/kiln/internal/source/git/gittest"
	"github.com/kilnvm/kiln/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// fetch goes the whole way and returns the commit, the archive and its warnings.
func fetch(t *testing.T, src kiln.GitSource, cred kiln.GitCredentials, opts git.Options) (string, []byte, []string, error) {
	t.Helper()
	r, err := git.Open(src, cred, t.TempDir(), opts)
	if err != nil {
		return "", nil, nil, err
	}
	defer r.Close()
	commit, err := r.Resolve(t.Context())
	if err != nil {
		return "", nil, nil, err
	}
	if err := r.Fetch(t.Context(), commit); err != nil {
		return commit, nil, nil, err
	}
	var out bytes.Buffer
	warnings, err := r.Archive(t.Context(), commit, &out)
	return commit, out.Bytes(), warnings, err
}

func listing(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	got := map[string]string{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		hdr, err := r.Next()
		if errors.Is(err, io.EOF) {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case hdr.Typeflag == tar.TypeSymlink:
			got[hdr.Name+"@"] = hdr.Linkname
		case hdr.Mode&0o111 != 0:
			got[hdr.Name+"*"] = string(content)
		default:
			got[hdr.Name] = string(content)
		}
	}
}

func equal(t *testing.T, got, want map[string]string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for name, content := range want {
		if got[name] != content {
			t.Errorf("%s = %q, want %q", name, got[name], content)
		}
	}
}

func TestRefsAndFolders(t *testing.T) {
	repo := gittest.New(t)
	first := repo.Commit("main", map[string]string{"Dockerfile": "FROM a\n"})
	repo.Git("tag", "plain", first)
	repo.Git("tag", "-a", "-m", "a tag", "annotated", first)
	second := repo.Commit("main", map[string]string{
		"Dockerfile": "FROM b\n", "sub/run*": "#!/bin/sh\n", "sub/link@": "../Dockerfile", "sub/deep/f": "1", ".gitattributes": "* export-ignore\n",
	})
	other := repo.Commit("topic/x", map[string]string{"f": "other"})
	url := repo.ServeHTTP("")

	for ref, want := range map[string]string{
		"": second, "main": second, "topic/x": other, "plain": first, "annotated": first, "refs/heads/main": second, first: first,
	} {
		commit, _, _, err := fetch(t, kiln.GitSource{URL: url, Ref: ref}, kiln.GitCredentials{}, git.Options{})
		if err != nil || commit != want {
			t.Errorf("ref %q is %s, %v, want %s", ref, commit, err, want)
		}
	}
	_, whole, warnings, err := fetch(t, kiln.GitSource{URL: url}, kiln.GitCredentials{}, git.Options{})
	if err != nil || len(warnings) != 0 {
		t.Fatalf("%v, %q", err, warnings)
	}
	equal(t, listing(t, whole), map[string]string{
		"Dockerfile": "FROM b\n", "sub/run*": "#!/bin/sh\n", "sub/link@": "../Dockerfile", "sub/deep/f": "1", ".gitattributes": "* export-ignore\n",
	})
	_, folder, _, err := fetch(t, kiln.GitSource{URL: url, Dir: "/sub/"}, kiln.GitCredentials{}, git.Options{})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, listing(t, folder), map[string]string{"run*": "#!/bin/sh\n", "link@": "../Dockerfile", "deep/f": "1"})
	if _, again, _, _ := fetch(t, kiln.GitSource{URL: url, Dir: "sub"}, kiln.GitCredentials{}, git.Options{}); !bytes.Equal(again, folder) {
		t.Error("one commit gives two archives")
	}

	for name, c := range map[string]struct {
		src  kiln.GitSource
		want string
	}{
		"no such ref":     {kiln.GitSource{URL: url, Ref: "gone"}, `no branch or tag "gone"`},
		"no such commit":  {kiln.GitSource{URL: url, Ref: strings.Repeat("a", 40)}, "git repository"},
		"no such folder":  {kiln.GitSource{URL: url, Dir: "gone"}, `no folder "gone"`},
		"folder is file":  {kiln.GitSource{URL: url, Dir: "Dockerfile"}, `no folder "Dockerfile"`},
		"folder is link":  {kiln.GitSource{URL: url, Dir: "sub/link"}, `no folder "sub/link"`},
		"no such repo":    {kiln.GitSource{URL: strings.Replace(url, "repo.git", "none.git", 1)}, "check the URL"},
		"nobody listens":  {kiln.GitSource{URL: "http://127.0.0.1:1/x.git"}, "check the URL"},
		"nothing in repo": {kiln.GitSource{URL: gittest.New(t).ServeHTTP("")}, "is empty"},
	} {
		if _, _, _, err := fetch(t, c.src, kiln.GitCredentials{}, git.Options{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPrivateRepositories(t *testing.T) {
	repo := gittest.New(t)
	repo.Commit("main", map[string]string{"f": "secret"})
	const token = "t0ken-of-the-test"
	url := repo.ServeHTTP(token)
	server := repo.ServeSSH()
	otherKey := gittest.New(t).ServeSSH()
	for name, c := range map[string]struct {
		url  string
		cred kiln.GitCredentials
		ok   bool
	}{
		"token":               {url, kiln.GitCredentials{Token: token}, true},
		"no token":            {url, kiln.GitCredentials{}, false},
		"wrong token":         {url, kiln.GitCredentials{Token: "wrong"}, false},
		"ssh key":             {server.URL, kiln.GitCredentials{SSHKey: server.Key, KnownHosts: server.KnownHosts}, true},
		"key without newline": {server.URL, kiln.GitCredentials{SSHKey: strings.TrimSpace(server.Key), KnownHosts: server.KnownHosts}, true},
		"wrong ssh key":       {server.URL, kiln.GitCredentials{SSHKey: otherKey.Key, KnownHosts: server.KnownHosts}, false},
		"no ssh key":          {server.URL, kiln.GitCredentials{KnownHosts: server.KnownHosts}, false},
		"unknown host":        {server.URL, kiln.GitCredentials{SSHKey: server.Key}, false},
		"another's key":       {server.URL, kiln.GitCredentials{SSHKey: server.Key, KnownHosts: strings.Split(server.KnownHosts, " ")[0] + " " + strings.SplitN(otherKey.KnownHosts, " ", 2)[1]}, false},
		"token over ssh":      {server.URL, kiln.GitCredentials{Token: token}, false},
		"key over http":       {url, kiln.GitCredentials{SSHKey: server.Key}, false},
		"token in clear":      {"http://example.org/x.git", kiln.GitCredentials{Token: token}, false},
		"token of two lines":  {url, kiln.GitCredentials{Token: "a\r\nX-Evil: 1"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			_, archive, _, err := fetch(t, kiln.GitSource{URL: c.url}, c.cred, git.Options{})
			if (err == nil) != c.ok || c.ok && listing(t, archive)["f"] != "secret" {
				t.Errorf("%v", err)
			}
			if err != nil && (strings.Contains(err.Error(), token) || strings.Contains(err.Error(), "PRIVATE KEY")) {
				t.Errorf("the error holds a secret: %v", err)
			}
		})
	}
}

func TestTokenGoesNowhereElse(t *testing.T) {
	var stolen atomic.Value
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		stolen.Store(r.Header.Get("Authorization"))
		http.NotFound(w, r)
	}))
	defer thief.Close()
	redirecting := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, thief.URL+r.URL.Path, http.StatusMovedPermanently)
	}))
	defer redirecting.Close()
	dir := t.TempDir()
	r, err := git.Open(kiln.GitSource{URL: redirecting.URL + "/x.git"}, kiln.GitCredentials{Token: "t0ken"}, dir, git.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Resolve(t.Context()); err == nil {
		t.Error("resolved")
	}
	if got := stolen.Load(); got != nil {
		t.Errorf("the redirect was followed with %q", got)
	}
}

func TestCredentialsTouchNoDisk(t *testing.T) {
	repo := gittest.New(t)
	repo.Commit("main", map[string]string{"f": "1"})
	server := repo.ServeSSH()
	dir := t.TempDir()
	r, err := git.Open(kiln.GitSource{URL: server.URL}, kiln.GitCredentials{SSHKey: server.Key, KnownHosts: server.KnownHosts}, dir, git.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	commit, err := r.Resolve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Fetch(t.Context(), commit); err != nil {
		t.Fatal(err)
	}
	secret := strings.Split(server.Key, "\n")[1]
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		if strings.Contains(string(content), secret) {
			t.Errorf("%s holds the key", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestCheckRefuses(t *testing.T) {
	const url = "https://example.org/a/b.git"
	for name, src := range map[string]kiln.GitSource{
		"file":                  {URL: "file:///etc"},
		"path":                  {URL: "/etc"},
		"relative path":         {URL: "../x"},
		"ext":                   {URL: "ext::sh -c touch% /tmp/x"},
		"remote helper":         {URL: "foo::https://example.org/x"},
		"git protocol":          {URL: "git://example.org/x"},
		"option":                {URL: "--upload-pack=touch /tmp/x"},
		"host is an option":     {URL: "ssh://-oProxyCommand=touch/x"},
		"user is an option":     {URL: "ssh://-oProxyCommand=x@example.org/x"},
		"scp host is an option": {URL: "git@-oProxyCommand=x:y"},
		"path is an option":     {URL: "ssh://example.org/-x"},
		"password":              {URL: "https://u:s3cret@example.org/x"},
		"odd password":          {URL: "https://u:a?s3cret@example.org/x"},
		"broken password":       {URL: "https://u:s3cret%zz@example.org/x"},
		"password of nobody":    {URL: "u:s3cret@example.org/x"},
		"password and blank":    {URL: "https://u:s3cret@example .org/x"},
		"query":                 {URL: url + "?token=s3cret"},
		"query and blank":       {URL: url + "?token=s3cret x"},
		"fragment":              {URL: url + "#s3cret"},
		"line break":            {URL: url + "\n"},
		"no host":               {URL: "https:///x"},
		"no path":               {URL: "https://example.org/"},
		"empty":                 {},
		"ref is an option":      {URL: url, Ref: "--upload-pack=touch /tmp/x"},
		"ref is a refspec":      {URL: url, Ref: "a:b"},
		"ref is forced":         {URL: url, Ref: "+main"},
		"ref is a range":        {URL: url, Ref: "a..b"},
		"ref is a reflog":       {URL: url, Ref: "main@{1}"},
		"ref with wildcard":     {URL: url, Ref: "*"},
		"ref with line break":   {URL: url, Ref: "a\nb"},
		"folder leads out":      {URL: url, Dir: "../x"},
		"folder leads far out":  {URL: url, Dir: "a/../../x"},
		"folder with NUL":       {URL: url, Dir: "a\x00b"},
	} {
		_, err := git.Check(src)
		if kiln.CodeOf(err) != kiln.CodeInvalid {
			t.Errorf("%s: %+v: %v", name, src, err)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: the error holds the password: %v", name, err)
		}
	}
	_, err := git.Open(kiln.GitSource{URL: url}, kiln.GitCredentials{}, t.TempDir(), git.Options{Hosts: []string{"git.example.com"}})
	if kiln.CodeOf(err) != kiln.CodeForbidden {
		t.Errorf("host that is not allowed: %v", err)
	}
	_, err = git.Open(kiln.GitSource{URL: "https://s3cret@example.org/x"}, kiln.GitCredentials{}, t.TempDir(), git.Options{})
	if kiln.CodeOf(err) != kiln.CodeInvalid || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("token in the place of the user name: %v", err)
	}
	got, err := git.Check(kiln.GitSource{URL: "git@Example.org:a/b.git", Ref: "v1", Dir: "./x/../y/"})
	if want := (kiln.GitSource{URL: "ssh://git@example.org/a/b.git", Ref: "v1", Dir: "y"}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestHostileRepositories(t *testing.T) {
	canary := filepath.Join(t.TempDir(), "canary")
	script := "#!/bin/sh\ntouch " + canary + "\n"
	unpack := func(t *testing.T, archive []byte) (string, error) {
		dir := t.TempDir()
		return dir, source.Unpack(t.Context(), bytes.NewReader(archive), dir, source.Limits{})
	}
	t.Run("hooks, submodules, links and filters", func(t *testing.T) {
		repo := gittest.New(t)
		commit := repo.Commit("base", map[string]string{"x": "1"})
		for _, hook := range []string{"post-checkout", "pre-auto-gc", "post-upload-pack"} {
			if err := os.WriteFile(filepath.Join(repo.Root, "repo.git", "hooks", hook), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		repo.Commit("main", map[string]string{
			".gitmodules": "[submodule \"m\"]\npath = m\nurl = ext::sh -c touch% " + canary + "\n", "m!": commit,
			".gitattributes": "* filter=evil export-subst\n", "hooks/post-checkout*": script,
			"passwd@": "/etc/passwd", "up@": "../../../../etc", "f": "$Format:%H$",
		})
		_, archive, warnings, err := fetch(t, kiln.GitSource{URL: repo.ServeHTTP("")}, kiln.GitCredentials{}, git.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if len(warnings) != 1 || !strings.Contains(warnings[0], "m is a submodule") {
			t.Errorf("warnings %q", warnings)
		}
		if got := listing(t, archive); got["f"] != "$Format:%H$" || got["passwd@"] != "/etc/passwd" {
			t.Errorf("%q", got)
		}
		dir, err := unpack(t, archive)
		if err != nil {
			t.Fatal(err)
		}
		if target, err := os.Readlink(filepath.Join(dir, "passwd")); err != nil || target != "/etc/passwd" {
			t.Errorf("link %q, %v", target, err)
		}
	})
	// Trees that git itself would never write.
	for name, entry := range map[string]string{".git": ".git", "parent": "..", "self": ".", "slash": "a/b", "absolute": "/etc", "case of .git": ".GIT"} {
		t.Run(name, func(t *testing.T) {
			repo := gittest.New(t)
			blob := repo.GitInput(script, "hash-object", "-w", "--stdin")
			raw := "100644 " + entry + "\x00" + string(unhex(t, blob))
			tree := repo.GitInput(raw, "hash-object", "-t", "tree", "-w", "--literally", "--stdin")
			repo.CommitTree("main", tree)
			_, archive, _, err := fetch(t, kiln.GitSource{URL: repo.ServeHTTP("")}, kiln.GitCredentials{}, git.Options{})
			if err == nil {
				_, err = unpack(t, archive)
			}
			if err == nil {
				t.Error("accepted")
			}
		})
	}
	t.Run("too many files", func(t *testing.T) {
		repo := gittest.New(t)
		repo.Commit("main", map[string]string{"a": "1", "b": "2", "c": "3"})
		_, _, _, err := fetch(t, kiln.GitSource{URL: repo.ServeHTTP("")}, kiln.GitCredentials{}, git.Options{Limits: source.Limits{Entries: 2}})
		if kiln.CodeOf(err) != kiln.CodeInvalid || !strings.Contains(err.Error(), "3 files") {
			t.Errorf("%v", err)
		}
	})
	t.Run("too much", func(t *testing.T) {
		repo := gittest.New(t)
		repo.Commit("main", map[string]string{"bomb": strings.Repeat("\x00", 4<<20)})
		_, _, _, err := fetch(t, kiln.GitSource{URL: repo.ServeHTTP("")}, kiln.GitCredentials{}, git.Options{Limits: source.Limits{Bytes: 1 << 20}})
		if kiln.CodeOf(err) != kiln.CodeInvalid || !strings.Contains(err.Error(), "1 MiB") {
			t.Errorf("%v", err)
		}
	})
	t.Run("too large to store", func(t *testing.T) {
		repo := gittest.New(t)
		noise := make([]byte, 1<<20)
		for i, x := 0, uint64(1); i < len(noise); i++ {
			x = x*6364136223846793005 + 1442695040888963407
			noise[i] = byte(x >> 56)
		}
		repo.Commit("main", map[string]string{"noise": string(noise)})
		if _, _, _, err := fetch(t, kiln.GitSource{URL: repo.ServeHTTP("")}, kiln.GitCredentials{}, git.Options{MaxBytes: 256 << 10}); err == nil {
			t.Error("stored more than allowed")
		}
	})
	if _, err := os.Stat(canary); err == nil {
		t.Error("something of the repository was executed")
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	out := make([]byte, len(s)/2)
	for i := range out {
		hi, lo := strings.IndexByte("0123456789abcdef", s[2*i]), strings.IndexByte("0123456789abcdef", s[2*i+1])
		out[i] = byte(hi<<4 | lo)
	}
	return out
}
