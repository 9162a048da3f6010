package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/image/base"
	"github.com/kilnvm/kiln/internal/image/bootstrap"
	"github.com/kilnvm/kiln/internal/image/builder"
)

// CABundleAuto stands for the host's certificate bundle when the host's administrator
// has added authorities to it, and for nothing otherwise.
const CABundleAuto = "auto"

// DefaultIdleTimeout is how long the builder process waits for the next build.
const DefaultIdleTimeout = 2 * time.Minute

// Options configure a [Builder].
type Options struct {
	// StateDir holds BuildKit's state and cache. One process at a time uses it.
	// Required unless Address is set.
	StateDir string
	// ImagesDir is an OCI image layout, made if needed, where downloaded and
	// bootstrapped base images are kept. Required. Processes may share it.
	ImagesDir string
	// Address is an existing BuildKit daemon or Docker Engine to be used instead of a
	// child process: "unix:///path" or "tcp://host:port".
	Address string

	// Layouts are folders of more OCI image layouts, looked at before everything else.
	// An image in them has its full name in index.json
	// (org.opencontainers.image.ref.name or io.containerd.image.name).
	Layouts []string
	// Mirrors maps a registry ("docker.io") to hosts that are asked before it.
	Mirrors map[string][]string
	// Keyrings maps "debian" or "ubuntu" to a file with the keys of its package archive,
	// where that is not in the usual place.
	Keyrings map[string]string

	// CABundle is a PEM file that commands in RUN steps trust, for networks whose HTTPS
	// traffic passes a proxy of the company: a path, CABundleAuto, or "" for none. It is
	// visible while a step runs and never part of an image. Not used with Address.
	CABundle string
	// CacheBytes bounds the build cache; 0 means builder.DefaultCacheBytes.
	CacheBytes int64
	// IdleTimeout is how long the builder process waits for the next build; 0 means
	// DefaultIdleTimeout.
	IdleTimeout time.Duration

	// Walk reads the tree below an open directory; it owns the directory unless it
	// fails. FromTar reads a tar stream to its end before it returns. Required: Walk, or
	// with Address FromTar.
	Walk    func(dir *os.File) (kiln.EntrySource, error)
	FromTar func(r io.Reader) (kiln.EntrySource, error)
}

// Builder is the image stage. It is safe for concurrent use.
type Builder struct {
	opts      Options
	resolver  *base.Resolver
	bootstrap *bootstrap.Maker
	daemon    daemon
}

// New checks the options. It starts nothing.
func New(opts Options) (*Builder, error) {
	switch {
	case opts.ImagesDir == "":
		return nil, errors.New("image: no folder for base images")
	case opts.Address == "" && opts.StateDir == "":
		return nil, errors.New("image: no state folder")
	case opts.Address == "" && opts.Walk == nil, opts.Address != "" && opts.FromTar == nil:
		return nil, errors.New("image: nothing to read results with")
	}
	if opts.IdleTimeout == 0 {
		opts.IdleTimeout = DefaultIdleTimeout
	}
	if opts.CABundle == CABundleAuto {
		opts.CABundle = hostCABundle()
	}
	imagesDir, err := filepath.Abs(opts.ImagesDir)
	if err != nil {
		return nil, err
	}
	store, err := base.OpenStore(imagesDir)
	if err != nil {
		return nil, err
	}
	maker := bootstrap.New(store, opts.Keyrings)
	b := &Builder{opts: opts, bootstrap: maker, resolver: &base.Resolver{
		Store: store, Layouts: opts.Layouts, Registry: base.NewRegistry(opts.Mirrors), Bootstrap: maker,
	}}
	b.daemon, err = newDaemon(opts)
	return b, err
}

// Sweep removes what a builder process that was killed left behind.
func (b *Builder) Sweep(ctx context.Context) error {
	l, ok := b.daemon.(*local)
	if !ok {
		return nil // what another daemon leaves is its own business
	}
	if err := builder.Sweep(ctx, l.cfg); err != nil {
		return fmt.Errorf("leftovers of the builder: %w", err)
	}
	return nil
}

// Close ends the builder process. Builds that still run fail; images that are still
// open stay readable.
func (b *Builder) Close() error { return b.daemon.Close() }

// ChildMain is the program of the builder process: a program that uses this package
// calls it, and exits with its result, when its first argument is builder.ChildArg.
// args are the arguments after that.
func ChildMain(args []string) int { return builder.Main(args) }

// hostCABundle returns the host's bundle if it holds more than the distribution's
// authorities: a file named by SSL_CERT_FILE, or the system's bundle when there are
// certificates where administrators put theirs.
func hostCABundle() string {
	if path := os.Getenv("SSL_CERT_FILE"); path != "" {
		return path
	}
	for _, system := range []struct{ added, bundle string }{
		{"/usr/local/share/ca-certificates/*.crt", "/etc/ssl/certs/ca-certificates.crt"},      // Debian, Alpine
		{"/etc/pki/ca-trust/source/anchors/*", "/etc/pki/tls/certs/ca-bundle.crt"},            // Fedora, Red Hat
		{"/etc/ca-certificates/trust-source/anchors/*", "/etc/ssl/certs/ca-certificates.crt"}, // Arch
	} {
		added, err := filepath.Glob(system.added)
		if err != nil || len(added) == 0 {
			continue
		}
		if _, err := os.Stat(system.bundle); err == nil {
			return system.bundle
		}
	}
	return ""
}
