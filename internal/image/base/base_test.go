package base

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// testImage is a small image for a platform.
func testImage(t *testing.T, os, arch string) v1.Image {
	t.Helper()
	img, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = os, arch
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

func digestOf(t *testing.T, img interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// multiPlatform is an index with images for linux/arm64 and linux/amd64.
func multiPlatform(t *testing.T, amd64 v1.Image) v1.ImageIndex {
	t.Helper()
	add := func(img v1.Image, arch string) mutate.IndexAddendum {
		return mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}}
	}
	return mutate.AppendManifests(empty.Index, add(testImage(t, "linux", "arm64"), "arm64"), add(amd64, "amd64"))
}

// noBootstrap makes nothing.
type noBootstrap struct{}

func (noBootstrap) Supports(Name) bool { return false }
func (noBootstrap) Names() string      { return "nothing" }
func (noBootstrap) Bootstrap(context.Context, Name, bool, kiln.Progress) (Image, error) {
	return Image{}, errors.New("not supported")
}

func newResolver(t *testing.T, mirrors map[string][]string) *Resolver {
	t.Helper()
	store, err := OpenStore(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	return &Resolver{Store: store, Registry: NewRegistry(mirrors), Bootstrap: noBootstrap{}}
}

// startRegistry serves an empty registry and counts requests.
func startRegistry(t *testing.T, wrap func(http.Handler) http.Handler) (host string, requests *int) {
	t.Helper()
	requests = new(int)
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	if wrap != nil {
		handler = wrap(handler)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*requests++
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://"), requests
}

func push(t *testing.T, ref string, img remote.Taggable, opts ...remote.Option) {
	t.Helper()
	tag, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Push(tag, img, opts...); err != nil {
		t.Fatal(err)
	}
}

func TestParseName(t *testing.T) {
	cases := []struct{ in, short, full string }{
		{"debian", "debian:latest", "docker.io/library/debian:latest"},
		{"docker.io/library/debian:12", "debian:12", "docker.io/library/debian:12"},
		{"me/app", "me/app:latest", "docker.io/me/app:latest"},
		{"localhost:5000/a/b:c", "localhost:5000/a/b:c", "localhost:5000/a/b:c"},
	}
	for _, tc := range cases {
		n, err := ParseName(tc.in)
		if err != nil || n.String() != tc.short || n.Full() != tc.full {
			t.Errorf("%s: %s, %s, %v", tc.in, n, n.Full(), err)
		}
	}
	for _, bad := range []string{"", "UPPER", "a b", "x@sha256:1"} {
		if _, err := ParseName(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// TestRegistry downloads once, keeps, and asks again only when told to.
func TestRegistry(t *testing.T) {
	host, requests := startRegistry(t, nil)
	img := testImage(t, "linux", "amd64")
	index := multiPlatform(t, img)
	push(t, host+"/team/base:1", index)
	r := newResolver(t, nil)
	ref := host + "/team/base:1"

	got, err := r.Resolve(t.Context(), ref, false, kiln.DiscardProgress)
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Digest) != digestOf(t, img) || got.Origin != OriginRegistry || got.BaseImage.Name != ref {
		t.Errorf("image = %+v", got.BaseImage)
	}
	if err := checkContent(got); err != nil {
		t.Error(err)
	}

	before := *requests
	for _, again := range []string{ref, host + "/team/base@" + digestOf(t, index), host + "/team/base@" + digestOf(t, img)} {
		if got, err := r.Resolve(t.Context(), again, false, kiln.DiscardProgress); err != nil || string(got.Digest) != digestOf(t, img) {
			t.Errorf("%s: %v %v", again, got.Digest, err)
		}
	}
	if *requests != before {
		t.Errorf("the registry was asked %d times for what is here", *requests-before)
	}

	moved := testImage(t, "linux", "amd64")
	push(t, ref, moved)
	if got, err = r.Resolve(t.Context(), ref, true, kiln.DiscardProgress); err != nil || string(got.Digest) != digestOf(t, moved) {
		t.Errorf("after pull: %v %v", got.Digest, err)
	}
	old := kiln.BaseImage{Name: ref, Digest: kiln.Digest(digestOf(t, img))}
	if located, err := r.Locate(old); err != nil || located.Digest != old.Digest {
		t.Errorf("a replaced image is gone at once: %v", err)
	}
}

// checkContent reads every layer through the store that BuildKit gets.
func checkContent(img Image) error {
	store := ContentStore(img.Layout)
	var manifest ocispec.Manifest
	if err := layoutOf(img).document(digest.Digest(img.Digest), &manifest); err != nil {
		return err
	}
	for _, desc := range append(manifest.Layers, manifest.Config) {
		r, err := store.ReaderAt(context.Background(), desc)
		if err != nil {
			return err
		}
		defer r.Close()
		b, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
		if err != nil || digest.FromBytes(b) != desc.Digest {
			return fmt.Errorf("blob %s: %v", desc.Digest, err)
		}
	}
	return nil
}

func layoutOf(img Image) layoutDir { return layoutDir(img.Layout) }

// TestMirror asks mirrors first, in order, and the registry itself last.
func TestMirror(t *testing.T) {
	empty, emptyRequests := startRegistry(t, nil)
	mirror, _ := startRegistry(t, nil)
	img := testImage(t, "linux", "amd64")
	push(t, mirror+"/proxy/library/thing:1", img)
	r := newResolver(t, map[string][]string{"docker.io": {"http://" + empty, mirror + "/proxy"}})
	got, err := r.Resolve(t.Context(), "thing:1", false, kiln.DiscardProgress)
	if err != nil || string(got.Digest) != digestOf(t, img) || got.BaseImage.Name != "thing:1" {
		t.Errorf("image = %+v, %v", got.BaseImage, err)
	}
	if *emptyRequests == 0 {
		t.Error("the first mirror was not asked")
	}
}

// TestCredentials logs in with what the Docker configuration says.
func TestCredentials(t *testing.T) {
	const user, password = "robot", "secret"
	host, _ := startRegistry(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if u, p, ok := r.BasicAuth(); !ok || u != user || p != password {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	r := newResolver(t, nil)
	_, err := r.Resolve(t.Context(), host+"/private:1", false, kiln.DiscardProgress)
	var missing *NotFoundError
	if !errors.As(err, &missing) || !missing.Missing || !strings.Contains(err.Error(), "access denied") {
		t.Errorf("without credentials: %v", err)
	}
	config, err := json.Marshal(map[string]any{"auths": map[string]any{
		host: map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte(user + ":" + password))},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	img := testImage(t, "linux", "amd64")
	push(t, host+"/private:1", img, remote.WithAuthFromKeychain(r.Registry.keychain))
	if got, err := r.Resolve(t.Context(), host+"/private:1", false, kiln.DiscardProgress); err != nil || string(got.Digest) != digestOf(t, img) {
		t.Errorf("with credentials: %v %v", got.Digest, err)
	}
}

// TestHazard25Registries meets registries that misbehave.
func TestHazard25Registries(t *testing.T) {
	answer := func(code int) string {
		host, _ := startRegistry(t, func(http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) })
		})
		return host
	}
	// A listener whose queue nobody empties: connections are made, nothing is answered.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	wrongPlatform, _ := startRegistry(t, nil)
	push(t, wrongPlatform+"/x:1", testImage(t, "linux", "arm64"))

	cases := []struct {
		name, host, message string
		missing             bool
		within              time.Duration
	}{
		{"broken", answer(500), "answered 500", false, 3 * time.Second},
		{"overloaded", answer(503), "answered 503", false, 3 * time.Second},
		{"too many requests", answer(429), "answered 429", false, 3 * time.Second},
		{"not found", answer(404), "no such image", true, 3 * time.Second},
		{"refused", "127.0.0.1:1", "cannot be reached", false, 3 * time.Second},
		{"unknown host", "registry.invalid", "cannot be reached", false, 4 * time.Second},
		{"silent", silent.Addr().String(), "does not answer", false, answerTimeout + 5*time.Second},
		{"wrong platform", wrongPlatform, "linux/arm64", true, 3 * time.Second},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := newResolver(t, nil)
			start := time.Now()
			_, err := r.Resolve(t.Context(), tc.host+"/x:1", false, kiln.DiscardProgress)
			t.Log(err)
			var failure *NotFoundError
			if !errors.As(err, &failure) || failure.Missing != tc.missing || !strings.Contains(err.Error(), tc.message) {
				t.Errorf("error = %v", err)
			}
			if failure.Hint() == "" {
				t.Error("no hint")
			}
			if d := time.Since(start); d > tc.within {
				t.Errorf("took %s, want at most %s", d, tc.within)
			}
			if images, err := r.Store.List(); err != nil || len(images) != 0 {
				t.Errorf("store has %v %v", images, err)
			}
		})
	}
}

// TestHazard25SlowDownload ends a download that brings next to nothing.
func TestHazard25SlowDownload(t *testing.T) {
	slow := false
	host, _ := startRegistry(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !slow || r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
				next.ServeHTTP(w, r)
				return
			}
			recorder := httptest.NewRecorder()
			next.ServeHTTP(recorder, r)
			w.Header().Set("Content-Length", strconv.Itoa(recorder.Body.Len()))
			w.Write(recorder.Body.Bytes()[:recorder.Body.Len()-1])
			w.(http.Flusher).Flush()
			<-r.Context().Done() // the last byte never comes
		})
	})
	push(t, host+"/x:1", testImage(t, "linux", "amd64"))
	slow = true
	r := newResolver(t, nil)
	r.Registry.transport.(*stallTransport).limit = 50 * time.Millisecond
	_, err := r.Resolve(t.Context(), host+"/x:1", false, kiln.DiscardProgress)
	if err == nil || !strings.Contains(err.Error(), "stood still") || !strings.Contains(err.Error(), host) {
		t.Errorf("error = %v", err)
	}
	if images, _ := r.Store.List(); len(images) != 0 {
		t.Error("half an image is visible")
	}
}

// TestHazard25DamagedDownload never stores a layer that is not what it should be.
func TestHazard25DamagedDownload(t *testing.T) {
	damage := false
	host, _ := startRegistry(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if damage && r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
				recorder := httptest.NewRecorder()
				next.ServeHTTP(recorder, r)
				body := recorder.Body.Bytes()
				body[len(body)/2] ^= 1
				w.Write(body)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	img := testImage(t, "linux", "amd64")
	push(t, host+"/x:1", img)
	r := newResolver(t, nil)
	damage = true
	if _, err := r.Resolve(t.Context(), host+"/x:1", false, kiln.DiscardProgress); err == nil {
		t.Fatal("a damaged image is accepted")
	}
	if images, _ := r.Store.List(); len(images) != 0 {
		t.Error("a damaged image is visible")
	}
	damage = false
	if _, err := r.Resolve(t.Context(), host+"/x:1", false, kiln.DiscardProgress); err != nil {
		t.Error(err)
	}
}

// TestLayouts finds images in layouts that other tools wrote.
func TestLayouts(t *testing.T) {
	amd64 := testImage(t, "linux", "amd64")
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	named := func(key, value string) layout.Option { return layout.WithAnnotations(map[string]string{key: value}) }
	for _, err := range []error{
		path.AppendImage(amd64, named(annotationName, "single:1")),
		path.AppendIndex(multiPlatform(t, amd64), named(annotationFull, "docker.io/library/multi:1")),
		path.AppendImage(testImage(t, "linux", "arm64"), named(annotationName, "foreign:1")),
		path.AppendImage(testImage(t, "windows", "amd64"), named(annotationName, "windows:1")),
		path.AppendIndex(mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
			Add: testImage(t, "linux", "arm64"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}},
		}), named(annotationName, "foreign-index:1")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	damaged := testImage(t, "linux", "amd64")
	if err := path.AppendImage(damaged, named(annotationName, "damaged:1")); err != nil {
		t.Fatal(err)
	}
	layers, err := damaged.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "blobs", "sha256", strings.TrimPrefix(digestOf(t, layers[0]), "sha256:"))); err != nil {
		t.Fatal(err)
	}

	r := newResolver(t, nil)
	r.Layouts = []string{filepath.Join(dir, "absent"), dir}
	for _, ref := range []string{"single:1", "docker.io/library/single:1", "multi:1", "any@" + digestOf(t, amd64)} {
		got, err := r.Resolve(t.Context(), ref, true, kiln.DiscardProgress)
		if err != nil || string(got.Digest) != digestOf(t, amd64) || got.Origin != OriginLayout {
			t.Errorf("%s: %+v %v", ref, got.BaseImage, err)
			continue
		}
		if located, err := r.Locate(got.BaseImage); err != nil || located.Layout != dir || located.Origin != OriginLayout {
			t.Errorf("locate %s: %+v %v", ref, located, err)
		}
	}
	for ref, message := range map[string]string{
		"foreign:1": "linux/arm64", "windows:1": "windows/amd64", "foreign-index:1": "linux/arm64", "damaged:1": "no such file",
	} {
		_, err := r.Resolve(t.Context(), ref, false, kiln.DiscardProgress)
		var failure *NotFoundError
		if !errors.As(err, &failure) || !failure.Missing || !strings.Contains(err.Error(), message) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v, want %q", ref, err, message)
		}
	}
}

// TestStoreCollect removes old blobs of no image, and nothing else.
func TestStoreCollect(t *testing.T) {
	host, _ := startRegistry(t, nil)
	img := testImage(t, "linux", "amd64")
	push(t, host+"/x:1", img)
	r := newResolver(t, nil)
	if _, err := r.Resolve(t.Context(), host+"/x:1", false, kiln.DiscardProgress); err != nil {
		t.Fatal(err)
	}
	unused, err := r.Store.Put("text/plain", []byte("unused"))
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := r.Store.Put("text/plain", []byte("fresh"))
	if err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob(filepath.Join(r.Store.Dir(), "blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-2 * collectAge)
	for _, path := range paths {
		if filepath.Base(path) != fresh.Digest.Encoded() {
			if err := os.Chtimes(path, old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	if r.Store, err = OpenStore(r.Store.Dir()); err != nil {
		t.Fatal(err)
	}
	if r.Store.Has(unused) || !r.Store.Has(fresh) {
		t.Errorf("unused kept: %t, fresh kept: %t", r.Store.Has(unused), r.Store.Has(fresh))
	}
	images, err := r.Store.List()
	if err != nil || len(images) != 1 || checkContent(images[0]) != nil {
		t.Errorf("images = %v %v", images, err)
	}
}

// TestStoreLock waits for a lock and lets go of it when nobody waits any more.
func TestStoreLock(t *testing.T) {
	store, err := OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := store.Lock(t.Context(), "-x")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := store.Lock(ctx, "-x"); kiln.CodeOf(err) != kiln.CodeCanceled {
		t.Errorf("error = %v", err)
	}
	unlock()
	unlock, err = store.Lock(t.Context(), "-x")
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}
