package base

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kilnvm/kiln"
)

// Timeouts of registry requests. There is none for a whole download, which may be long;
// one that stands still, or brings less than stallBytes within stallTimeout, ends.
const (
	connectTimeout = 3 * time.Second
	answerTimeout  = 10 * time.Second
	stallTimeout   = 30 * time.Second
	stallBytes     = 32 << 10
	parallelLayers = 4
)

// Registry downloads images. Credentials are those of the Docker configuration
// (DOCKER_CONFIG or ~/.docker/config.json, credential helpers included).
type Registry struct {
	mirrors   map[string][]string
	keychain  authn.Keychain
	transport http.RoundTripper
}

// NewRegistry returns a client. mirrors maps a registry ("docker.io") to hosts to be
// asked before it, each "host[:port][/prefix]"; "http://" before one allows plain HTTP.
func NewRegistry(mirrors map[string][]string) *Registry {
	return &Registry{
		mirrors:  mirrors,
		keychain: authn.DefaultKeychain,
		transport: &stallTransport{limit: stallTimeout, next: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: connectTimeout}).DialContext,
			TLSHandshakeTimeout:   connectTimeout,
			ResponseHeaderTimeout: answerTimeout,
			ForceAttemptHTTP2:     true,
			IdleConnTimeout:       answerTimeout,
		}},
	}
}

// RegistryError is the answer, or the silence, of one registry.
type RegistryError struct {
	Host string
	// Missing says that the registry answered and does not have the image, or not for us.
	Missing bool
	Err     error
}

func (e *RegistryError) Error() string { return "registry " + e.Host + ": " + e.Err.Error() }
func (e *RegistryError) Unwrap() error { return e.Err }

// Fetch downloads an image into the store unless its content is there already. It asks
// the mirrors of the registry in their order, then the registry.
func (r *Registry) Fetch(ctx context.Context, store *Store, image Name, progress kiln.Progress) (Image, error) {
	var errs []error
	for _, host := range append(r.mirrors[image.Domain()], image.Domain()) {
		img, err := r.fetchFrom(ctx, store, image, host, progress)
		if err == nil {
			return img, nil
		}
		errs = append(errs, &RegistryError{Host: host, Missing: isMissing(err), Err: plain(err)})
		if ctx.Err() != nil {
			break
		}
	}
	return Image{}, errors.Join(errs...)
}

func (r *Registry) fetchFrom(ctx context.Context, store *Store, image Name, host string, progress kiln.Progress) (Image, error) {
	ref, err := remoteReference(image, host)
	if err != nil {
		return Image{}, err
	}
	opts := []remote.Option{
		remote.WithContext(ctx),
		remote.WithAuthFromKeychain(r.keychain),
		remote.WithTransport(r.transport),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"}),
		remote.WithRetryBackoff(remote.Backoff{Steps: 1}),
		remote.WithUserAgent("kiln"),
	}
	desc, err := remote.Get(ref, opts...)
	if err != nil {
		return Image{}, err
	}
	img, err := desc.Image()
	if err != nil {
		return Image{}, err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return Image{}, err
	}
	if err := checkPlatform(config); err != nil {
		return Image{}, err
	}
	return copyImage(ctx, store, Entry{Name: image, Origin: OriginRegistry, Source: desc.Digest.String()}, img, config, progress)
}

// remoteReference names image at host, which may carry a scheme and a path prefix.
func remoteReference(image Name, host string) (name.Reference, error) {
	var opts []name.Option
	host, insecure := strings.CutPrefix(host, "http://")
	if insecure {
		opts = append(opts, name.Insecure)
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "https://"), "/")
	suffix := ":" + image.Tag()
	if d := image.Digest(); d != "" {
		suffix = "@" + d
	}
	return name.ParseReference(host+"/"+image.Path()+suffix, opts...)
}

// copyImage stores an image's blobs, then makes it visible.
func copyImage(ctx context.Context, store *Store, e Entry, img v1.Image, config []byte, progress kiln.Progress) (Image, error) {
	layers, err := img.Layers()
	if err != nil {
		return Image{}, err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallelLayers)
	for _, layer := range layers {
		group.Go(func() error { return copyLayer(groupCtx, store, e.Name, layer, progress) })
	}
	if err := group.Wait(); err != nil {
		return Image{}, err
	}
	if _, err := store.Put(ocispec.MediaTypeImageConfig, config); err != nil {
		return Image{}, err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return Image{}, err
	}
	mediaType, err := img.MediaType()
	if err != nil {
		return Image{}, err
	}
	e.Manifest, err = store.Put(string(mediaType), manifest)
	if err != nil {
		return Image{}, err
	}
	return store.Add(ctx, e)
}

func copyLayer(ctx context.Context, store *Store, image Name, layer v1.Layer, progress kiln.Progress) error {
	d, err := layer.Digest()
	if err != nil {
		return err
	}
	size, err := layer.Size()
	if err != nil {
		return err
	}
	desc := ocispec.Descriptor{Digest: digest.Digest(d.String()), Size: size}
	if store.Has(desc) {
		return nil
	}
	progress.Log(kiln.StageImage, fmt.Sprintf("%s: pulling %s (%.1f MB)", image, desc.Digest.Encoded()[:12], float64(size)/1e6))
	body, err := layer.Compressed()
	if err != nil {
		return err
	}
	defer body.Close()
	stop := context.AfterFunc(ctx, func() { body.Close() }) // another layer has failed
	defer stop()
	return store.PutFrom(desc, body)
}

// stallTransport gives every answer a [stallReader] as its body.
type stallTransport struct {
	limit time.Duration
	next  http.RoundTripper
}

// RoundTrip implements [http.RoundTripper].
func (t *stallTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(r)
	if err == nil {
		resp.Body = newStallReader(resp.Body, t.limit)
	}
	return resp, err
}

// stallReader ends a download that stands still or nearly so.
type stallReader struct {
	body  io.ReadCloser
	limit time.Duration
	timer *time.Timer
	fired chan struct{}
	since int // bytes since the timer was set
}

func newStallReader(body io.ReadCloser, limit time.Duration) *stallReader {
	s := &stallReader{body: body, limit: limit, fired: make(chan struct{})}
	s.timer = time.AfterFunc(limit, func() {
		close(s.fired)
		body.Close()
	})
	return s
}

func (s *stallReader) Read(p []byte) (int, error) {
	n, err := s.body.Read(p)
	s.since += n
	select {
	case <-s.fired:
		return n, fmt.Errorf("the download stood still: %d bytes in %s", s.since, s.limit)
	default:
	}
	if s.since >= stallBytes {
		s.since = 0
		s.timer.Reset(s.limit)
	}
	return n, err
}

func (s *stallReader) Close() error {
	s.timer.Stop()
	return s.body.Close()
}

// isMissing tells "the registry does not have it, or not for us" from "the registry
// could not be asked".
func isMissing(err error) bool {
	var platform *PlatformError
	if errors.As(err, &platform) {
		return true
	}
	var answer *transport.Error
	if !errors.As(err, &answer) {
		return false
	}
	switch answer.StatusCode {
	case http.StatusNotFound, http.StatusUnauthorized, http.StatusForbidden:
		return true
	}
	return false
}

// plain shortens what the client library says to its essence.
func plain(err error) error {
	var answer *transport.Error
	if errors.As(err, &answer) {
		switch answer.StatusCode {
		case http.StatusNotFound:
			return errors.New("no such image")
		case http.StatusUnauthorized, http.StatusForbidden:
			return errors.New("no such image, or access denied (credentials come from the Docker configuration)")
		}
		return fmt.Errorf("answered %d %s", answer.StatusCode, http.StatusText(answer.StatusCode))
	}
	var silence net.Error
	if errors.As(err, &silence) && silence.Timeout() {
		return fmt.Errorf("does not answer: %w", err)
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return fmt.Errorf("cannot be reached: %w", dns)
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return fmt.Errorf("cannot be reached: %w", op)
	}
	return err
}
