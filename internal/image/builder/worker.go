package builder

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	ctdsnapshot "github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/executor/oci"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/moby/buildkit/util/entitlements"
	"github.com/moby/buildkit/util/network/netproviders"
	"github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	"github.com/moby/buildkit/worker/runc"
	bolt "go.etcd.io/bbolt"
)

// newController assembles BuildKit: one worker that runs containers with runc on
// overlayfs snapshots, and a cache in the state folder. Frontends are the client's.
func newController(cfg Config, results *results) (*control.Controller, error) {
	sessions, err := session.NewManager()
	if err != nil {
		return nil, err
	}
	w, err := newWorker(cfg)
	if err != nil {
		return nil, err
	}
	workers := &worker.Controller{}
	if err := workers.Add(handoffWorker{Worker: w, results: results}); err != nil {
		return nil, err
	}
	cache, err := bboltcachestorage.NewStore(filepath.Join(cfg.StateDir, "cache.db"))
	if err != nil {
		return nil, fmt.Errorf("build cache: %w", err)
	}
	history, err := boltutil.SafeOpen(filepath.Join(cfg.StateDir, "history.db"), 0o600, &bolt.Options{
		FreelistType:   bolt.FreelistMapType,
		NoFreelistSync: true,
	})
	if err != nil {
		return nil, fmt.Errorf("build history: %w", err)
	}
	return control.NewController(control.Opt{
		SessionManager:   sessions,
		WorkerController: workers,
		CacheManager:     solver.NewCacheManager(context.Background(), "local", cache, worker.NewCacheResultStorage(workers)),
		CacheStore:       cache,
		HistoryDB:        history,
		Entitlements:     []string{string(entitlements.EntitlementNetworkHost)},
		LeaseManager:     w.LeaseManager(),
		ContentStore:     w.ContentStore(),
		GarbageCollect:   w.GarbageCollect,
	})
}

func newWorker(cfg Config) (*base.Worker, error) {
	opt, err := runc.NewWorkerOpt(
		cfg.StateDir,
		runc.SnapshotterFactory{Name: "overlayfs", New: func(root string) (ctdsnapshot.Snapshotter, error) {
			return overlay.NewSnapshotter(root)
		}},
		false, // not rootless
		oci.ProcessSandbox,
		nil, nil, // no labels, no user namespace
		netproviders.Opt{Mode: "host"},
		nil,       // DNS settings of the host
		"runc",    // not another runtime that happens to be first in a default list
		"", false, // no AppArmor profile, no SELinux labels
		nil, // BuildKit runs as many steps at once as the Dockerfile allows
		"",  // no trace socket
		cfg.cgroup(),
		nil, // no CDI devices
	)
	if err != nil {
		return nil, err
	}
	opt.GCPolicy = gcPolicy(cfg.cacheBytes())
	opt.RegistryHosts = noRegistry
	if cfg.CABundle != "" {
		opt.Executor = caExecutor{Executor: opt.Executor, dir: cfg.caDir()}
	}
	return base.NewWorker(context.Background(), opt)
}

// noRegistry keeps the child from asking registries: all images that a build names were
// made available as local layouts before it started.
func noRegistry(host string) ([]docker.RegistryHost, error) {
	return nil, errors.New("image was not resolved before the build; registry " + host + " is not asked")
}

// gcPolicy drops what costs little to make again first (contexts, cache mounts after
// two days), then the least recently used, until at most limit bytes are kept.
func gcPolicy(limit int64) []client.PruneInfo {
	return []client.PruneInfo{
		{
			Filter:       []string{"type==source.local,type==source.git.checkout,type==exec.cachemount"},
			KeepDuration: 48 * time.Hour,
			MaxUsedSpace: limit / 10,
		},
		{KeepDuration: 60 * 24 * time.Hour, MaxUsedSpace: limit},
		{MaxUsedSpace: limit},
		{All: true, MaxUsedSpace: limit},
	}
}
