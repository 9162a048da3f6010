package builder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/worker"
)

// ExporterName is the type of the exporter that hands over the mounted result.
const ExporterName = "kiln"

// tokenAttr is the exporter attribute that names the result on the handoff socket.
const tokenAttr = "token"

// releaseTimeout bounds giving back one snapshot reference.
const releaseTimeout = 10 * time.Second

// handoffWorker is a BuildKit worker that has one exporter more.
type handoffWorker struct {
	worker.Worker
	results *results
}

func (w handoffWorker) Exporter(name string, sm *session.Manager) (exporter.Exporter, error) {
	if name == ExporterName {
		return handoffExporter{results: w.results}, nil
	}
	return w.Worker.Exporter(name, sm)
}

type handoffExporter struct{ results *results }

func (e handoffExporter) Resolve(_ context.Context, id int, attrs map[string]string) (exporter.ExporterInstance, error) {
	if attrs[tokenAttr] == "" {
		return nil, fmt.Errorf("exporter %s: no %s", ExporterName, tokenAttr)
	}
	return &handoffInstance{results: e.results, id: id, attrs: attrs}, nil
}

type handoffInstance struct {
	results *results
	id      int
	attrs   map[string]string
}

func (e *handoffInstance) ID() int                  { return e.id }
func (e *handoffInstance) Name() string             { return "handing over root filesystem" }
func (e *handoffInstance) Type() string             { return ExporterName }
func (e *handoffInstance) Attrs() map[string]string { return e.attrs }
func (e *handoffInstance) Config() *exporter.Config { return exporter.NewConfig() }

func (e *handoffInstance) Export(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (map[string]string, exporter.FinalizeFunc, exporter.DescriptorReference, error) {
	ref, err := singleRef(src)
	if err != nil {
		return nil, nil, nil, err
	}
	return nil, nil, nil, e.results.handOver(ctx, e.attrs[tokenAttr], ref, session.NewGroup(info.SessionID))
}

// singleRef returns the only result; it is nil when the image has no files.
func singleRef(src *exporter.Source) (cache.ImmutableRef, error) {
	if len(src.Refs) == 0 {
		return src.Ref, nil
	}
	platforms, err := exptypes.ParsePlatforms(src.Metadata)
	if err != nil {
		return nil, err
	}
	if len(platforms.Platforms) != 1 {
		return nil, fmt.Errorf("result has %d platforms, want one", len(platforms.Platforms))
	}
	ref, ok := src.FindRef(platforms.Platforms[0].ID)
	if !ok {
		return nil, fmt.Errorf("result lacks platform %s", platforms.Platforms[0].ID)
	}
	return ref, nil
}

// results are the root filesystems that the parent is reading.
type results struct {
	conn *handoffConn
	mu   sync.Mutex
	held map[string]func() error
}

func newResults(conn *handoffConn) *results {
	return &results{conn: conn, held: map[string]func() error{}}
}

// handOver mounts ref, keeps it, and sends the parent a descriptor of the mount.
func (r *results) handOver(ctx context.Context, token string, ref cache.ImmutableRef, g session.Group) error {
	path, release, err := mountResult(ctx, ref, g)
	if err != nil {
		return err
	}
	dir, err := os.Open(path)
	if err != nil {
		return errors.Join(err, release())
	}
	defer dir.Close()
	r.mu.Lock()
	r.held[token] = release
	r.mu.Unlock()
	if err := r.conn.send(handoffMessage{Ready: token}, dir); err != nil {
		return errors.Join(fmt.Errorf("hand over root filesystem: %w", err), r.release(token))
	}
	return nil
}

// release gives a result back. Releasing what is not held does nothing.
func (r *results) release(token string) error {
	r.mu.Lock()
	release := r.held[token]
	delete(r.held, token)
	r.mu.Unlock()
	if release == nil {
		return nil
	}
	return release()
}

func (r *results) releaseAll() error {
	r.mu.Lock()
	held := r.held
	r.held = map[string]func() error{}
	r.mu.Unlock()
	var errs []error
	for _, release := range held {
		errs = append(errs, release())
	}
	return errors.Join(errs...)
}

// mountResult mounts ref read-only. The snapshot stays referenced until release.
func mountResult(ctx context.Context, ref cache.ImmutableRef, g session.Group) (path string, release func() error, err error) {
	if ref == nil {
		return emptyResult()
	}
	ref = ref.Clone()
	releaseRef := func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
		defer cancel()
		return ref.Release(ctx)
	}
	mountable, err := ref.Mount(ctx, true, g)
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("mount result: %w", err), releaseRef())
	}
	mounter := snapshot.LocalMounter(mountable)
	path, err = mounter.Mount()
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("mount result: %w", err), releaseRef())
	}
	return path, func() error { return errors.Join(mounter.Unmount(), releaseRef()) }, nil
}

// emptyResult stands for an image without files, as "FROM scratch" alone makes it.
func emptyResult() (string, func() error, error) {
	path, err := os.MkdirTemp("", "kiln-scratch-")
	if err != nil {
		return "", nil, err
	}
	return path, func() error { return os.Remove(path) }, nil
}
