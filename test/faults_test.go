package test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
)

// failedTemplate is what `templates show -o json` says of a template that was never ready.
type failedTemplate struct {
	Status     string           `json:"status"`
	Version    int              `json:"version"`
	BuildError *kiln.BuildError `json:"build_error"`
}

// fails builds a template that cannot be built and looks at what its user and a second one
// are told: each of the words, and what to do.
func (s *server) fails(template string, words []string, build ...string) *kiln.BuildError {
	s.t.Helper()
	r := s.kiln(append([]string{"templates", "build", template}, build...)...)
	var shown failedTemplate
	if err := json.Unmarshal([]byte(s.must("templates", "show", template, "-o", "json")), &shown); err != nil {
		s.t.Fatal(err)
	}
	if r.code != 7 || shown.Status != "failed" || shown.Version != 0 || shown.BuildError == nil {
		s.t.Fatalf("exit code %d, %+v\n%s%s", r.code, shown, r.stdout, r.stderr)
	}
	s.t.Log(shown.BuildError)
	for _, word := range words {
		if !strings.Contains(shown.BuildError.Error(), word) || !strings.Contains(r.stderr, word) {
			s.t.Errorf("not said: %q\nbuild_error: %s\nstandard error: %s", word, shown.BuildError, r.stderr)
		}
	}
	if shown.BuildError.Hint == "" {
		s.t.Errorf("no hint: %s", shown.BuildError)
	}
	if r := s.kiln("sandbox", "create", "-t", template); r.code == 0 {
		s.t.Errorf("a sandbox of a failed build: %s", r.stdout)
	}
	return shown.BuildError
}

// halfMade returns what only a running build or request has in the data directory.
func (s *server) halfMade() []string {
	s.t.Helper()
	var left []string
	for _, pattern := range []string{"bakes/*", "blobs/tmp/*", "uploads/*", "buildkit/runc-*/executor/[a-z0-9]*/rootfs"} {
		found, err := filepath.Glob(filepath.Join(s.dataDir, pattern))
		if err != nil {
			s.t.Fatal(err)
		}
		left = append(left, found...)
	}
	return left
}

// busyboxContext is a build context whose image is nothing but busybox and what is added.
func busyboxContext(t *testing.T, dockerfile string) string {
	t.Helper()
	dir := writeFiles(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY busybox /bin/busybox\n" +
		"RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n" + dockerfile})
	if err := os.WriteFile(filepath.Join(dir, "busybox"), busybox(t), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// busybox returns the program.
func busybox(t *testing.T) []byte {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("this test needs a static busybox: `make setup` installs it")
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// TestHazard25FullDisk gives a whole server a data directory that is too small for one stage
// after the other: each says so, leaves nothing, and succeeds when there is room.
func TestHazard25FullDisk(t *testing.T) {
	var disk string
	resize := func(size string) {
		t.Helper()
		if err := unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT, "size="+size); err != nil {
			t.Fatal(err)
		}
	}
	s := newServerIn(t, func(dir string) {
		disk = filepath.Join(dir, "data")
		if err := os.Mkdir(disk, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=20m"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(disk, 0); err != nil {
				t.Error(err)
			}
		})
	})
	small := busyboxContext(t, "RUN dd if=/dev/urandom of=/random bs=1000000 count=30\n")
	for _, tc := range []struct{ stage, size, template string }{
		{"image", "20m", "a"}, {"rootfs", "64m", "b"}, {"snapshot", "120m", "c"},
	} {
		resize(tc.size)
		if fault := s.fails(tc.template, []string{"full"}, small); fault.Stage != kiln.Stage(tc.stage) {
			t.Errorf("%s: it failed in stage %s", tc.size, fault.Stage)
		}
		if left := s.halfMade(); len(left) > 0 {
			t.Errorf("%s: left behind: %q", tc.stage, left)
		}
	}
	resize("1g")
	s.must("templates", "build", "c", small)
	if got := s.must("sandbox", "run", "-t", "c", "--", "sh", "-c", "wc -c < /random"); strings.TrimSpace(got) != "30000000" {
		t.Errorf("a sandbox printed %q", got)
	}
	// An upload that does not fit is refused before there is a version.
	resize("200m")
	big := writeFiles(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY big /\n"})
	if err := os.WriteFile(filepath.Join(big, "big"), make([]byte, 220<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := s.kiln("templates", "build", "d", big); r.code == 0 || !strings.Contains(r.stderr, "no space left") {
		t.Errorf("an upload that does not fit: %d\n%s", r.code, r.stderr)
	}
	if r := s.kiln("templates", "show", "d"); r.code == 0 {
		t.Errorf("a template without a source: %s", r.stdout)
	}
	if left := s.halfMade(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestHazard25Registries builds from registries that misbehave, all at once.
func TestHazard25Registries(t *testing.T) {
	s := newServerWith(t, "images_dir = \"\"\nparallel = 6\ntimeout = \"15s\"\n")
	n := 0
	// Each has an image of its own: what is at hand is not fetched.
	image := func() v1.Image {
		n++
		return busyboxImage(t, strconv.Itoa(n))
	}
	layer := func(answer func(http.ResponseWriter, *http.Request, []byte)) string {
		return serveRegistry(t, image(), func(w http.ResponseWriter, r *http.Request, content []byte) bool {
			hit := r.Method == http.MethodGet && len(content) > 10_000
			if hit {
				answer(w, r, content)
			}
			return hit
		})
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0") // connections are made, nothing is answered
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	cases := []struct {
		name, host string
		words      []string
	}{
		{"error", serveRegistry(t, image(), func(w http.ResponseWriter, _ *http.Request, _ []byte) bool { w.WriteHeader(500); return true }), []string{"answered 500"}},
		{"error in a layer", layer(func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(500) }), []string{"answered 500"}},
		{"silent", silent.Addr().String(), []string{"does not answer"}},
		{"trickle", layer(trickle), []string{"took longer than 15s", "getting the base image"}},
		{"other content", layer(func(w http.ResponseWriter, _ *http.Request, content []byte) {
			content[len(content)/2] ^= 1
			_, _ = w.Write(content)
		}), []string{"checksum"}},
	}
	good := serveRegistry(t, image(), func(http.ResponseWriter, *http.Request, []byte) bool { return false })
	t.Run("builds", func(t *testing.T) {
		for _, tc := range cases {
			t.Run(tc.name, func(t *testing.T) {
				t.Parallel()
				own := s.in(t)
				dir := writeFiles(t, map[string]string{"Dockerfile": "FROM " + tc.host + "/x:1\n"})
				own.fails(strings.ReplaceAll(tc.name, " ", "-"), append(tc.words, tc.host), dir)
			})
		}
		t.Run("good", func(t *testing.T) {
			t.Parallel()
			own := s.in(t)
			own.must("templates", "build", "good", writeFiles(t, map[string]string{"Dockerfile": "FROM " + good + "/x:1\n"}))
		})
	})
	if left := s.halfMade(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	index, err := os.ReadFile(filepath.Join(s.dataDir, "images", "index.json"))
	if err != nil || strings.Count(string(index), `"io.containerd.image.name"`) != 1 || !strings.Contains(string(index), good+"/x:1") {
		t.Errorf("base images that are kept: %s, %v", index, err)
	}
	if got := s.must("sandbox", "run", "-t", "good", "--", "/bin/busybox", "echo", "works"); got != "works\n" {
		t.Errorf("a sandbox printed %q", got)
	}
}

// trickle sends one byte now and then, until the client has had enough.
func trickle(w http.ResponseWriter, r *http.Request, content []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(content)))
	for i := range content {
		if _, err := w.Write(content[i : i+1]); err != nil {
			return
		}
		w.(http.Flusher).Flush()
		select {
		case <-time.After(100 * time.Millisecond):
		case <-r.Context().Done():
			return
		}
	}
}

// busyboxImage is an image with one program, and a note that makes it another image.
func busyboxImage(t *testing.T, note string) v1.Image {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for path, content := range map[string][]byte{"bin/busybox": busybox(t), "note": []byte(note)} {
		if err := w.WriteHeader(&tar.Header{Name: path, Mode: 0o755, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{diffID(t, layer)}}})
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func diffID(t *testing.T, layer v1.Layer) v1.Hash {
	t.Helper()
	id, err := layer.DiffID()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// serveRegistry serves image as x:1. Once it is there, broken sees every good answer's
// content and may give another instead.
func serveRegistry(t *testing.T, image v1.Image, broken func(http.ResponseWriter, *http.Request, []byte) bool) (host string) {
	t.Helper()
	good := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	ready := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-ready:
		default:
			good.ServeHTTP(w, r)
			return
		}
		answer := httptest.NewRecorder()
		good.ServeHTTP(answer, r)
		if broken(w, r, answer.Body.Bytes()) {
			return
		}
		maps.Copy(w.Header(), answer.Header())
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes()) // the client has gone when this fails
	}))
	t.Cleanup(server.Close)
	host = strings.TrimPrefix(server.URL, "http://")
	ref, err := name.ParseReference(host + "/x:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, image); err != nil {
		t.Fatal(err)
	}
	close(ready)
	return host
}
