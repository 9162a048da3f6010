package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/client"
	"github.com/kilnvm/kiln/internal/guest"
)

// BurstOptions says what [Burst] and [Density] measure. All fields are required.
type BurstOptions struct {
	Client         *client.Client
	Template, Size string
	Count          int
	Progress       func(string)
}

// verified creates a sandbox and has it compute something; it returns its ID and process.
func (o *BurstOptions) verified(ctx context.Context, number int) (api.Sandbox, error) {
	sb, err := o.Client.CreateSandbox(ctx, api.CreateSandboxRequest{Template: o.Template, Size: o.Size})
	if err != nil {
		return api.Sandbox{}, err
	}
	return *sb, o.verify(ctx, sb.ID, number)
}

func (o *BurstOptions) verify(ctx context.Context, id string, number int) error {
	g := o.Client.Guest(id)
	defer g.Close()
	var out printed
	exit, err := g.Run(ctx, guest.Command{Args: []string{"/bin/sh", "-c", fmt.Sprintf("echo $((%d * 7))", number)}, Stdout: &out})
	if err != nil {
		return fmt.Errorf("sandbox %s: %w", id, err)
	}
	if want := fmt.Sprintln(number * 7); exit.Code != 0 || string(out) != want {
		return fmt.Errorf("sandbox %s: exit code %d, printed %q, want %q", id, exit.Code, out, want)
	}
	return nil
}

// printed is what a command wrote.
type printed []byte

func (p *printed) Write(b []byte) (int, error) {
	*p = append(*p, b...)
	return len(b), nil
}

// destroy ends sandboxes, also after ctx has ended.
func (o *BurstOptions) destroy(ctx context.Context, list []api.Sandbox) error {
	var errs []error
	for _, sb := range list {
		if sb.ID != "" {
			errs = append(errs, o.Client.DestroySandbox(context.WithoutCancel(ctx), sb.ID))
		}
	}
	return errors.Join(errs...)
}

// Burst asks for many sandboxes at once and has each compute something. Its aim compares
// the time with the CPU time that the host used meanwhile, spread over all processors: how
// much of the time was spent on waiting. What one sandbox costs alone is shown beside it,
// because processors that are all busy get less done in the same CPU time.
func Burst(ctx context.Context, o BurstOptions) (r *Report, err error) {
	one, err := o.alone(ctx)
	if err != nil {
		return nil, err
	}
	o.Progress(fmt.Sprintf("%d sandboxes at once", o.Count))
	made, failures, each := make([]api.Sandbox, o.Count), make([]error, o.Count), make(Sample, o.Count)
	defer func() { err = errors.Join(err, o.destroy(ctx, made)) }()
	before, err := hostCPU()
	if err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	begun := time.Now()
	for i := range o.Count {
		wg.Go(func() {
			made[i], failures[i] = o.verified(ctx, i)
			each[i] = time.Since(begun)
		})
	}
	wg.Wait()
	wall := time.Since(begun)
	after, err := hostCPU()
	if err != nil {
		return nil, err
	}
	failed := 0
	for _, err := range failures {
		if err != nil {
			failed++
			o.Progress(err.Error())
		}
	}
	r = &Report{Name: "burst"}
	r.row("one sandbox alone: CPU time of the host until its command has ended", one, 0)
	r.row("each of the burst: CPU time of the host, mean", Sample{(after - before) / time.Duration(o.Count)}, 0)
	r.row("each of the burst: request until its command has ended", each, 0)
	r.row("all of the burst", Sample{wall}, 0)
	ideal := (after - before) / time.Duration(runtime.NumCPU())
	r.ratio("burst / (count × CPU time of each / processors)", wall, ideal, 1.2, false)
	r.Ratios = append(r.Ratios, Ratio{What: "sandboxes that failed", Value: float64(failed), Aim: 0})
	return r, nil
}

// alone measures the CPU time that the whole host uses for one sandbox.
func (o *BurstOptions) alone(ctx context.Context) (Sample, error) {
	const rounds = 5
	var s Sample
	for i := range rounds {
		before, err := hostCPU()
		if err != nil {
			return nil, err
		}
		sb, err := o.verified(ctx, i)
		if err != nil {
			return nil, errors.Join(err, o.destroy(ctx, []api.Sandbox{sb}))
		}
		after, err := hostCPU()
		if err != nil {
			return nil, err
		}
		s.Add(after - before)
		if err := o.destroy(ctx, []api.Sandbox{sb}); err != nil {
			return nil, err
		}
	}
	return s, nil
}
