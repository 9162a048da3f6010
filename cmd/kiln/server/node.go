package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/artifact"
	"github.com/kilnvm/kiln/internal/bootbundle"
	"github.com/kilnvm/kiln/internal/config"
	"github.com/kilnvm/kiln/internal/gc"
	"github.com/kilnvm/kiln/internal/image"
	"github.com/kilnvm/kiln/internal/network"
	"github.com/kilnvm/kiln/internal/pipeline"
	"github.com/kilnvm/kiln/internal/ready"
	"github.com/kilnvm/kiln/internal/rootfs"
	"github.com/kilnvm/kiln/internal/sandbox"
	"github.com/kilnvm/kiln/internal/snapshot"
	"github.com/kilnvm/kiln/internal/source/git"
	"github.com/kilnvm/kiln/internal/store"
	"github.com/kilnvm/kiln/internal/vmm"
)

// node is everything that builds templates and runs sandboxes.
type node struct {
	log       *slog.Logger
	store     *store.Store
	blobs     *artifact.Blobs
	images    *image.Builder
	pipeline  *pipeline.Service
	network   *network.Pool // nil when it is switched off
	sandboxes *sandbox.Manager
	bakes     sync.WaitGroup
	garbage   *gc.Collector

	collecting     sync.WaitGroup
	stopCollecting context.CancelFunc // nil when nothing runs by itself
	groups         groups
	cool           func() // ends the warm pool; nil before there is one
}

// startNode makes the parts in the order in which they need each other. say is told what
// takes long. When it fails, nothing is left running.
func startNode(ctx context.Context, s *serving, say func(string)) (n *node, err error) {
	opts, dir := s.opts, s.dir
	n = &node{log: opts.Log}
	defer func() {
		if err != nil {
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(opts.Config.API.ShutdownTimeout))
			defer cancel()
			err = errors.Join(err, n.close(closing))
		}
	}()
	cfg := opts.Config
	if n.store, err = openStore(ctx, cfg, dir); err != nil {
		return n, err
	}
	if err := ensureToken(ctx, n.store, TokenPath(dir.path)); err != nil {
		return n, err
	}
	blobs, err := artifact.Open(dir.join(blobsDir))
	if err != nil {
		return n, err
	}
	n.blobs = blobs
	say("finding out which virtual machines run here")
	driver, err := newDriver(ctx, cfg, s.metrics.GuestRestarted, opts.Log)
	if err != nil {
		return n, err
	}
	say("preparing the guest kernel")
	bundle, err := newBundle(ctx, cfg, dir)
	if err != nil {
		return n, err
	}
	say("taking up what an earlier server left")
	if n.images, err = image.New(ImageOptions(cfg)); err != nil {
		return n, err
	}
	if err := n.images.Sweep(ctx); err != nil {
		return n, err
	}
	if n.network, err = newNetwork(ctx, opts, dir, n.store); err != nil {
		return n, err
	}
	if n.groups, err = openGroups(cfg, opts.Log); err != nil {
		return n, err
	}
	baker, err := snapshot.New(ctx, snapshot.Options{
		Network: n.network, Groups: n.groups.bakes,
		Driver: driver, Boot: bundle, Blobs: blobs, Dir: dir.join("bakes"),
		Ready: ready.Limits{Ready: time.Duration(cfg.Build.ReadyTimeout)}, Log: opts.Log,
	})
	if err != nil {
		return n, err
	}
	if n.sandboxes, err = n.newSandboxes(ctx, s, driver, bundle, blobs, baker); err != nil {
		return n, err
	}
	n.pipeline, err = pipeline.Start(ctx, pipeline.Options{
		Store: n.store, Blobs: blobs, Images: n.images, Rootfs: rootfsStage{}, Snapshots: baker, Dir: dir.join("builds"),
		Parallel: cfg.Build.Parallel, MaxContextBytes: int64(cfg.Build.MaxContextMB) << 20, Sizes: cfg.SizeTable(), SnapshotSizes: cfg.Build.SnapshotSizes,
		Timeouts: stageTimeouts(cfg.Build), Git: git.Options{Hosts: cfg.Build.GitHosts},
		OpenRoot:       func(f *os.File) (kiln.EntrySource, error) { return rootfs.FromTar(f) },
		CurrentChanged: n.sandboxes.WarmChanged, Meter: s.metrics, Traces: s.traces.Provider(), Log: opts.Log,
	})
	if err != nil {
		return n, err
	}
	if err := n.registerCatalog(ctx, cfg.Catalog); err != nil {
		return n, err
	}
	n.cool = keepWarm(n.sandboxes)
	return n, n.startCollecting(cfg, baker.Key)
}

func stageTimeouts(b config.Build) pipeline.Timeouts {
	return pipeline.Timeouts{
		Source: time.Duration(b.SourceTimeout), Image: time.Duration(b.Timeout),
		Rootfs: time.Duration(b.RootfsTimeout), Snapshot: time.Duration(b.SnapshotTimeout),
	}
}

func openStore(ctx context.Context, cfg config.Config, dir *dataDir) (*store.Store, error) {
	if cfg.Store.URL != "" {
		return store.OpenPostgres(ctx, cfg.Store.URL)
	}
	return store.Open(ctx, dir.join("kiln.db"))
}

// newBundle makes what every VM boots.
func newBundle(ctx context.Context, cfg config.Config, dir *dataDir) (kiln.BootBundle, error) {
	daemon, err := findSandboxd(cfg.VM.Sandboxd)
	if err != nil {
		return kiln.BootBundle{}, err
	}
	return bootbundle.Build(ctx, bootbundle.Options{
		CacheDir: or(cfg.VM.BundleDir, dir.join("bundle")), Kernel: cfg.VM.Kernel, ModulesDir: cfg.VM.KernelModules, Sandboxd: daemon,
	})
}

// findSandboxd returns the configured guest daemon, or the one beside this program.
func findSandboxd(configured string) (string, error) {
	file := configured
	if file == "" {
		exe, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find this program: %w", err)
		}
		file = filepath.Join(filepath.Dir(exe), "kiln-sandboxd")
	}
	if info, err := os.Stat(file); err != nil || !info.Mode().IsRegular() {
		return "", kiln.Errorf(kiln.CodeUnavailable, "the guest daemon %s is missing", file).
			WithHint("install kiln-sandboxd beside kiln, or set vm.sandboxd in the configuration")
	}
	return file, nil
}

// ImageOptions are the image stage's, for a server or for a command beside it.
func ImageOptions(cfg config.Config) image.Options {
	return image.Options{
		StateDir: filepath.Join(cfg.DataDir, "buildkit"), ImagesDir: or(cfg.Build.ImagesDir, filepath.Join(cfg.DataDir, "images")),
		Address: cfg.Build.Address, Layouts: cfg.Build.Layouts, Mirrors: cfg.Build.Mirrors, Keyrings: cfg.Build.Keyrings,
		CABundle: cfg.Build.CABundle, CacheBytes: int64(cfg.Build.CacheMB) << 20,
		Walk: rootfs.FromDir, FromTar: rootfs.FromTar,
	}
}

func or(value, fallback string) string {
	if value != "" {
		return value
	}
	return fallback
}

func (n *node) newSandboxes(ctx context.Context, s *serving, driver vmm.Driver, bundle kiln.BootBundle,
	blobs *artifact.Blobs, baker *snapshot.Baker,
) (*sandbox.Manager, error) {
	cfg := s.opts.Config
	m, err := sandbox.New(sandbox.Options{
		Network: n.network,
		Driver:  driver, Boot: bundle, Store: n.store, Blobs: blobs, SnapshotKey: baker.Key, RequestBake: n.requestBake,
		Dir:    s.dir.join("sandboxes"),
		Sizes:  cfg.SizeTable(),
		Limits: sandboxLimits(cfg),
		Groups: n.groups.sandboxes,
		Warm:   warmLimits(cfg),
		Meter:  s.metrics,
		Traces: s.traces.Provider(),
		Log:    n.log,
	})
	if err != nil {
		return nil, err
	}
	if err := m.Reconcile(ctx); err != nil {
		return nil, fmt.Errorf("release what an earlier server left: %w", err)
	}
	return m, nil
}

// requestBake makes, in the background, the snapshot that a sandbox would have needed.
func (n *node) requestBake(v *kiln.Version, size kiln.Size, why error) {
	if why != nil {
		n.log.Warn("snapshot cannot be used", "template", v.TemplateID, "version", v.Number, "size", size.Name, "err", why)
	}
	n.bakes.Go(func() {
		// The pipeline ends it when it is closed.
		if _, err := n.pipeline.EnsureSnapshot(context.Background(), v, size.Name); err != nil {
			n.log.Warn("bake failed", "template", v.TemplateID, "version", v.Number, "size", size.Name, "err", err)
		}
	})
}

// close ends the parts in the reverse order. It is fine with a node that is half made.
func (n *node) close(ctx context.Context) error {
	var errs []error
	var wg sync.WaitGroup
	var sandboxErr error
	if n.stopCollecting != nil {
		n.stopCollecting()
		n.collecting.Wait()
	}
	if n.cool != nil {
		n.cool()
	}
	if n.sandboxes != nil {
		wg.Go(func() { sandboxErr = n.sandboxes.Close(ctx) })
	}
	if n.pipeline != nil {
		errs = append(errs, n.pipeline.Close(ctx))
	}
	wg.Wait()
	n.bakes.Wait()
	errs = append(errs, sandboxErr)
	if n.network != nil {
		errs = append(errs, n.network.Close())
	}
	if n.images != nil {
		errs = append(errs, n.images.Close())
	}
	n.groups.close()
	if n.store != nil {
		errs = append(errs, n.store.Close())
	}
	return errors.Join(errs...)
}

// rootfsStage is package rootfs as the pipeline wants it.
type rootfsStage struct{}

func (rootfsStage) FormatVersion() int { return rootfs.FormatVersion }

func (rootfsStage) Write(ctx context.Context, src kiln.EntrySource, dst string) (kiln.Blob, []string, error) {
	res, err := rootfs.Write(ctx, src, dst)
	return res.Blob, res.Notes, err
}
