package bootstrap

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/image/base"
	"github.com/kilnvm/kiln/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestFind(t *testing.T) {
	cases := []struct{ name, canonical string }{
		{"debian", "debian:trixie"},
		{"debian:12", "debian:bookworm"},
		{"debian:bookworm-slim", "debian:bookworm-slim"},
		{"docker.io/library/debian:13-slim", "debian:trixie-slim"},
		{"debian:latest", "debian:trixie"},
		{"ubuntu", "ubuntu:noble"},
		{"ubuntu:24.04", "ubuntu:noble"},
		{"ubuntu:24.04-slim", ""},
		{"debian:bullseye", ""},
		{"me/debian:12", ""},
		{"registry.example/library/debian:12", ""},
		{"debian@sha256:" + strings.Repeat("0", 64), ""},
		{"alpine", ""},
	}
	for _, tc := range cases {
		name, err := base.ParseName(tc.name)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := find(name)
		if ok != (tc.canonical != "") || ok && got.canonical() != tc.canonical {
			t.Errorf("%s: %s %t, want %q", tc.name, got.canonical(), ok, tc.canonical)
		}
	}
}

func TestSources(t *testing.T) {
	a := archive{target: target{distribution: distribution{family: debian(), codename: "trixie"}}, main: "http://a/debian", security: "http://b/sec", keyring: "/k.gpg"}
	const wantLines = `deb [signed-by=/k.gpg] http://a/debian trixie main
deb [signed-by=/k.gpg] http://a/debian trixie-updates main
deb [signed-by=/k.gpg] http://b/sec trixie-security main`
	if got := strings.Join(a.sourceLines(), "\n"); got != wantLines {
		t.Errorf("lines:\n%s", got)
	}
	const wantFile = `Types: deb
URIs: http://a/debian
Suites: trixie trixie-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://b/sec
Suites: trixie-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

`
	if got := a.sources(); got != wantFile {
		t.Errorf("file:\n%s", got)
	}
}

// made bootstraps into a new store.
func made(t *testing.T, ref string) (*base.Store, base.Image) {
	t.Helper()
	testkit.RequireRoot(t)
	testkit.RequireCommands(t, "mmdebstrap", "unshare")
	store, err := base.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	name, err := base.ParseName(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := New(store, nil).Bootstrap(t.Context(), name, false, testLog{t})
	if err != nil {
		t.Fatal(err)
	}
	return store, img
}

type testLog struct{ t *testing.T }

func (l testLog) Log(_ kiln.Stage, line string) { l.t.Log(line) }

func created(t *testing.T, img base.Image) time.Time {
	t.Helper()
	var config ocispec.Image
	if err := json.Unmarshal(img.Config, &config); err != nil || config.Created == nil {
		t.Fatalf("configuration %s: %v", img.Config, err)
	}
	return *config.Created
}

// TestDebian makes an image twice and looks at what is in it.
func TestDebian(t *testing.T) {
	store, img := made(t, "debian:12-slim")
	_, again := made(t, "debian:bookworm-slim")
	if created(t, img).Equal(created(t, again)) && img.Digest != again.Digest {
		t.Errorf("made twice from one state of the archive: %s and %s", img.Digest, again.Digest)
	}
	for _, ref := range []string{"debian:12-slim", "debian:bookworm-slim"} {
		name, _ := base.ParseName(ref)
		if found, ok, err := store.Find(name); !ok || err != nil || found.Digest != img.Digest || found.Origin != base.OriginBootstrap {
			t.Errorf("%s: %+v %t %v", ref, found.BaseImage, ok, err)
		}
	}
	files := layerFiles(t, img)
	for _, absent := range []string{
		"./etc/resolv.conf", "./etc/hostname", "./etc/machine-id", "./dev/null", "./etc/apt/sources.list",
		"./etc/apt/apt.conf.d/99mmdebstrap", "./usr/share/man/man1/ls.1.gz", "./var/cache/ldconfig/aux-cache",
	} {
		if _, ok := files[absent]; ok {
			t.Errorf("the image has %s", absent)
		}
	}
	for _, present := range []string{"./usr/bin/apt-get", "./usr/sbin/policy-rc.d", "./usr/share/doc/bash/copyright", "./usr/share/keyrings/debian-archive-keyring.gpg"} {
		if _, ok := files[present]; !ok {
			t.Errorf("the image lacks %s", present)
		}
	}
	if s := files["./etc/apt/sources.list.d/debian.sources"]; !strings.Contains(s, "Suites: bookworm-security") {
		t.Errorf("package sources:\n%s", s)
	}
	for path, content := range files {
		if strings.HasPrefix(path, "./var/log/") && content != "" || strings.HasPrefix(path, "./var/lib/apt/lists/") && !strings.HasSuffix(path, "/") {
			t.Errorf("the image has %s", path)
		}
	}
}

// layerFiles returns the content of the only layer's small files, by name.
func layerFiles(t *testing.T, img base.Image) map[string]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(img.Layout, "blobs/sha256", img.Digest.Hex()))
	if err != nil {
		t.Fatal(err)
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(b, &manifest); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(img.Layout, "blobs/sha256", manifest.Layers[0].Digest.Encoded()))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := map[string]string{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(io.LimitReader(r, 4096))
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(content)
	}
}

// TestArchiveFails says which archive could not be reached, and when keys are missing.
func TestArchiveFails(t *testing.T) {
	a := archive{target: target{distribution: distributions()[0]}, main: "http://127.0.0.1:1/debian", security: "http://127.0.0.1:1/s"}
	if _, err := a.published(t.Context(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "http://127.0.0.1:1/debian") {
		t.Errorf("error = %v", err)
	}
	store, err := base.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	tgt := target{distribution: distributions()[0]}
	tgt.family.keyring = "/absent.gpg"
	_, err = New(store, nil).keyring(t.Context(), tgt, t.TempDir(), kiln.DiscardProgress)
	var known *kiln.Error
	if !errors.As(err, &known) || known.Code != kiln.CodeUnavailable || !strings.Contains(known.Hint, "debian-archive-keyring") {
		t.Errorf("error = %v", err)
	}
	name, _ := base.ParseName("alpine")
	if _, err := New(store, nil).Bootstrap(t.Context(), name, false, kiln.DiscardProgress); kiln.CodeOf(err) != kiln.CodeInvalid {
		t.Errorf("error = %v", err)
	}
}

// TestCancel stops a run and leaves no folder.
func TestCancel(t *testing.T) {
	testkit.RequireRoot(t)
	store, err := base.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	name, _ := base.ParseName("debian:bookworm")
	_, err = New(store, nil).Bootstrap(ctx, name, false, cancelAt{cancel, "extracting"})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v", err)
	}
	left, _ := filepath.Glob(filepath.Join(os.TempDir(), "kiln-bootstrap-*"))
	blobs, _ := filepath.Glob(filepath.Join(store.Dir(), "ingest/*"))
	if left = slices.Concat(left, blobs); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

type cancelAt struct {
	cancel context.CancelFunc
	text   string
}

func (c cancelAt) Log(_ kiln.Stage, line string) {
	if strings.Contains(line, c.text) {
		c.cancel()
	}
}
