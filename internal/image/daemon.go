package image

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/moby/buildkit/client"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/image/base"
	"github.com/kilnvm/kiln/internal/image/builder"
)

// daemon is a BuildKit that builds.
type daemon interface {
	// solve runs one build on the given bases and returns its root filesystem. run
	// performs the build.
	solve(ctx context.Context, bases []base.Image, run func(context.Context, target) error) (kiln.EntrySource, error)
	Close() error
}

// target is where one build runs.
type target struct {
	client *client.Client
	export client.ExportEntry // where the result goes
	bases  baseContexts
	// entitlements are what RUN steps may ask for.
	entitlements []string
}

// baseContexts tell the Dockerfile frontend where to take base images from.
type baseContexts struct {
	attrs  map[string]string        // frontend attributes
	stores map[string]content.Store // that the attributes name
}

// layoutContexts makes the frontend take each base image, by digest, from the layout
// that has it.
func layoutContexts(bases []base.Image) baseContexts {
	c := baseContexts{attrs: map[string]string{}, stores: map[string]content.Store{}}
	ids := map[string]string{} // by layout folder
	for _, img := range bases {
		id, ok := ids[img.Layout]
		if !ok {
			id = fmt.Sprintf("layout%d", len(ids))
			ids[img.Layout] = id
			c.stores[id] = base.ContentStore(img.Layout)
		}
		c.attrs[contextAttr(img.Ref)] = fmt.Sprintf("oci-layout://%s@%s", id, img.Digest)
	}
	return c
}

// contextAttr is the attribute that replaces an image.
func contextAttr(ref base.Name) string { return "context:" + contextName(ref) }

// contextName is the name under which BuildKit looks for a replacement of an image.
func contextName(ref base.Name) string { return strings.TrimSuffix(ref.String(), ":latest") }

func newDaemon(opts Options) (daemon, error) {
	if opts.Address != "" {
		return newRemote(opts.Address, opts.FromTar)
	}
	return newLocal(opts)
}

// child is a builder process that all builds share. It is started for the first build
// and ended when none has needed it for a while.
type child struct {
	cfg  builder.Config
	idle time.Duration

	mu      sync.Mutex
	process *builder.Process
	users   int
	timer   *time.Timer
}

// acquire returns the running process, or starts one. Call the returned function when
// nothing of the process is needed any more.
func (c *child) acquire(ctx context.Context) (*builder.Process, func(), error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
	}
	if c.process != nil {
		select {
		case <-c.process.Done():
			c.process.Close()
			c.process = nil
		default:
		}
	}
	if c.process == nil {
		p, err := builder.Start(ctx, c.cfg)
		if err != nil {
			return nil, nil, c.startError(err)
		}
		c.process = p
	}
	c.users++
	return c.process, sync.OnceFunc(c.release), nil
}

func (c *child) startError(err error) error {
	if errors.Is(err, builder.ErrBusy) {
		return kiln.Errorf(kiln.CodeConflict, "cannot build: %w", err).
			WithHint("another server or build uses the folder %s; stop it or use another data directory", c.cfg.StateDir)
	}
	return err
}

func (c *child) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.users--
	if c.users > 0 || c.process == nil {
		return
	}
	c.timer = time.AfterFunc(c.idle, c.stopIdle)
}

func (c *child) stopIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users == 0 {
		c.stop()
	}
}

// stop ends the process; c.mu is held.
func (c *child) stop() error {
	if c.process == nil {
		return nil
	}
	p := c.process
	c.process = nil
	return p.Close()
}

// Close ends the process even if builds run.
func (c *child) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
	}
	return c.stop()
}
