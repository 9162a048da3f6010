package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/catalog"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/client"
	"github.com/kilnvm/kiln/internal/guest"
)

// CatalogOptions says what [Catalog] measures. All fields but Templates are required.
type CatalogOptions struct {
	Client *client.Client
	// Templates are names of built-in templates; none means all.
	Templates []string
	// Rounds is how many sandboxes are restored of each template, SmokeRounds in how many
	// of them the smoke command runs: at least one.
	Rounds, SmokeRounds int
	// BlobPath returns where the server keeps a blob, to tell what it takes on the disk.
	BlobPath func(kiln.Digest) string
	Progress func(string)
}

// CatalogReport is what is known of every built-in template.
type CatalogReport struct {
	Name string       `json:"name"`
	Rows []CatalogRow `json:"rows"`
}

// CatalogRow is one template. If Failed says why it could not be measured the rest is as
// far as it went.
type CatalogRow struct {
	Template  string        `json:"template"`
	Failed    string        `json:"failed,omitempty"`
	Base      string        `json:"base"`
	Size      string        `json:"size"`            // VM size of its sandboxes
	Apparent  int64         `json:"apparent_bytes"`  // of the root filesystem
	Allocated int64         `json:"allocated_bytes"` // of it on this disk
	Cold      time.Duration `json:"cold_ns"`         // first build, base image included
	Image     time.Duration `json:"image_ns"`        // of that
	Bake      time.Duration `json:"bake_ns"`         // of that
	Cached    time.Duration `json:"cached_ns"`       // the same recipe under another name
	NoChange  time.Duration `json:"no_change_ns"`    // the same again
	Restore   Sample        `json:"restore"`         // request to daemon's answer
	First     Sample        `json:"first_output"`    // request to the smoke command's first output
	Smoke     Sample        `json:"smoke"`           // the smoke command, to its end
	Said      string        `json:"said"`            // the first line it printed
}

// Catalog builds the built-in templates on a server where they have not been built, and
// measures their sandboxes. That a template cannot be built, or fails its smoke command, is
// noted in its row and is the error at the end. Interrupted, it reports what it has.
func Catalog(ctx context.Context, o CatalogOptions) (*CatalogReport, error) {
	names := o.Templates
	if len(names) == 0 {
		names = catalog.Names()
	}
	report := &CatalogReport{Name: "catalog"}
	var failed error
	for _, name := range names {
		c := cataloguing{CatalogOptions: o, row: CatalogRow{Template: name}}
		err := c.measure(ctx)
		if ctx.Err() != nil {
			return report, errors.Join(failed, ctx.Err())
		}
		if err != nil {
			c.row.Failed = err.Error()
			failed = errors.Join(failed, fmt.Errorf("%s: %w", name, err))
		}
		report.Rows = append(report.Rows, c.row)
	}
	return report, failed
}

// cataloguing is the measurement of one template.
type cataloguing struct {
	CatalogOptions
	row   CatalogRow
	smoke string
}

func (c *cataloguing) measure(ctx context.Context) error {
	for _, step := range []struct {
		what string
		run  func(context.Context) error
	}{{"building", c.build}, {"building again", c.rebuild}, {"restoring", c.restore}} {
		c.Progress(c.row.Template + ": " + step.what)
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

// build builds the built-in template itself.
func (c *cataloguing) build(ctx context.Context) error {
	begun := time.Now()
	b, err := c.Client.BuildBuiltIn(ctx, c.row.Template, api.BuiltInRequest{})
	if err != nil {
		return err
	}
	if b.Unchanged {
		return kiln.Errorf(kiln.CodeConflict, "it has been built already").WithHint("measure a fresh server, with --own")
	}
	if b, err = c.follow(ctx, b); err != nil {
		return err
	}
	c.row.Cold = time.Since(begun)
	for _, s := range b.Stages {
		switch s.Stage {
		case kiln.StageImage:
			c.row.Image = s.Duration
		case kiln.StageSnapshot:
			c.row.Bake = s.Duration
		case kiln.StageSource, kiln.StageRootfs, kiln.StagePromote:
		}
	}
	t, err := c.Client.GetTemplate(ctx, c.row.Template)
	if err != nil {
		return err
	}
	v := t.Versions[0]
	c.smoke, c.row.Size, c.row.Base = v.Metadata.Smoke, t.DefaultSize, t.Base
	for _, base := range v.BaseImages {
		if base.Chosen {
			c.row.Base = base.Name
		}
	}
	c.row.Apparent = v.Rootfs.Size
	c.row.Allocated, err = allocated(c.BlobPath(v.Rootfs.Digest))
	return err
}

// allocated returns what a file takes on its disk, in bytes.
func allocated(path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return st.Blocks * 512, nil
}

// rebuild makes a template of the organisation's own from the same recipe, twice: with all
// stages found, and without a change.
func (c *cataloguing) rebuild(ctx context.Context) error {
	archive, err := catalog.Context(c.row.Template)
	if err != nil {
		return err
	}
	name := "bench-" + c.row.Template
	for _, took := range []*time.Duration{&c.row.Cached, &c.row.NoChange} {
		begun := time.Now()
		b, err := c.Client.CreateTemplate(ctx, client.CreateTemplate{
			Name: name, Context: bytes.NewReader(archive), Replace: true, Options: api.BuildOptions{Dockerfile: "Dockerfile"},
		})
		if err == nil && !b.Unchanged {
			_, err = c.follow(ctx, b)
		}
		if err != nil {
			return err
		}
		*took = time.Since(begun)
	}
	return c.Client.DeleteTemplate(ctx, name)
}

// follow waits for the end of a build.
func (c *cataloguing) follow(ctx context.Context, b *api.Build) (*api.Build, error) {
	end, err := c.Client.BuildLog(ctx, b.ID, client.LogOptions{Follow: true}, func(api.LogLine) error { return nil })
	if err != nil {
		return nil, err
	}
	if end.BuildError != nil {
		return nil, end.BuildError
	}
	return end, nil
}

func (c *cataloguing) restore(ctx context.Context) error {
	for i := range c.Rounds {
		if err := c.round(ctx, i < c.SmokeRounds); err != nil {
			return err
		}
	}
	return nil
}

func (c *cataloguing) round(ctx context.Context, smoke bool) (err error) {
	begun := time.Now()
	sb, err := c.Client.CreateSandbox(ctx, api.CreateSandboxRequest{Template: c.row.Template, BootMode: string(kiln.BootSnapshot)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Client.DestroySandbox(context.WithoutCancel(ctx), sb.ID)) }()
	c.row.Restore.Add(time.Duration(sb.BootUS) * time.Microsecond)
	if !smoke {
		return nil
	}
	g := c.Client.Guest(sb.ID)
	defer g.Close()
	out := &firstOutput{}
	started := time.Now()
	exit, err := g.Run(ctx, guest.Command{Args: []string{"/bin/sh", "-c", c.smoke}, Stdout: out, Stderr: out})
	if err != nil {
		return err
	}
	if exit.Code != 0 {
		return fmt.Errorf("smoke command %q: exit code %d: %s", c.smoke, exit.Code, out.text())
	}
	c.row.Smoke.Add(time.Since(started))
	c.row.First.Add(out.at().Sub(begun))
	line, _, _ := bytes.Cut([]byte(out.text()), []byte("\n"))
	c.row.Said = string(line)
	return nil
}

// firstOutput remembers what is written to it, and when the first of it came.
type firstOutput struct {
	mu    sync.Mutex
	first time.Time
	buf   bytes.Buffer
}

// Write implements io.Writer.
func (f *firstOutput) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.first.IsZero() {
		f.first = time.Now()
	}
	return f.buf.Write(p)
}

func (f *firstOutput) text() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.buf.String()
}

func (f *firstOutput) at() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.first
}
