package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/client"
	"github.com/kilnvm/kiln/internal/guest"
)

// BootOptions says what [Boot] measures. All fields are required.
type BootOptions struct {
	Client   *client.Client
	QEMU     string // program that gives the unit
	Template string
	// Size and Large are the sizes whose restores are compared; the same name twice
	// compares nothing. To compare memory they should have as many vCPUs.
	Size, Large string
	Rounds      int
	// ColdEvery is how many rounds go by between cold boots, which take seconds.
	ColdEvery int
	// Progress is told how far it is.
	Progress func(string)
}

// execs is how many commands run in each sandbox. The last is what one costs once its way
// is paved.
const execs = 10

// Boot measures how fast sandboxes start, by every start path, and how fast the first
// command in them is.
func Boot(ctx context.Context, o BootOptions) (*Report, error) {
	b := booting{BootOptions: o}
	if err := b.awaitSnapshots(ctx); err != nil {
		return nil, err
	}
	for i := range o.Rounds {
		if i%10 == 0 {
			o.Progress(fmt.Sprintf("round %d of %d", i+1, o.Rounds))
		}
		if err := b.round(ctx, i); err != nil {
			return nil, err
		}
	}
	return b.report(), nil
}

// booting is one run of Boot.
type booting struct {
	BootOptions
	bare            Sample
	restore, large  Sample // until the daemon answers
	spawned         Sample // the same, by a VMM that was started ahead
	spawnedLarge    Sample
	largeMiB        int    // memory of a sandbox of size Large
	handOut         Sample // until the request for the sandbox is answered
	command         Sample // from the request until the first command has ended
	firstRun, later Sample // one command by itself
	cold            Sample
}

func (b *booting) round(ctx context.Context, i int) error {
	if err := b.awaitSpawned(ctx, b.Size, b.Large); err != nil {
		return err
	}
	bare, err := BareQEMU(ctx, b.QEMU)
	if err != nil {
		return err
	}
	b.bare.Add(bare)
	if err := b.start(ctx, b.Size, kiln.BootSnapshot, b.useRestored); err != nil {
		return err
	}
	if b.Large != b.Size {
		if err := b.start(ctx, b.Large, kiln.BootSnapshot, addTo(&b.large)); err != nil {
			return err
		}
	}
	if err := b.roundSpawned(ctx); err != nil {
		return err
	}
	if b.ColdEvery > 0 && i%b.ColdEvery == 0 {
		return b.start(ctx, b.Size, kiln.BootCold, addTo(&b.cold))
	}
	return nil
}

// roundSpawned measures restores by VMMs that were started ahead. Meanwhile none is started.
func (b *booting) roundSpawned(ctx context.Context) error {
	if err := b.start(ctx, b.Size, kiln.BootSpawned, addTo(&b.spawned)); err != nil || b.Large == b.Size {
		return err
	}
	if err := b.awaitSpawned(ctx, b.Size, b.Large); err != nil {
		return err
	}
	return b.start(ctx, b.Large, kiln.BootSpawned, addTo(&b.spawnedLarge))
}

// addTo notes how soon the daemon answered.
func addTo(sample *Sample) func(context.Context, started) error {
	return func(_ context.Context, s started) error {
		sample.Add(s.answered)
		return nil
	}
}

// started is a sandbox with what its start took.
type started struct {
	id       string
	begun    time.Time
	answered time.Duration // until the daemon's first answer
	handOut  time.Duration
}

// start starts a sandbox, passes it to use and destroys it.
func (b *booting) start(ctx context.Context, size string, mode kiln.BootMode, use func(context.Context, started) error) error {
	s := started{begun: time.Now()}
	sb, err := b.Client.CreateSandbox(ctx, api.CreateSandboxRequest{Template: b.Template, Size: size, BootMode: string(mode)})
	if err != nil {
		return err
	}
	if size == b.Large {
		b.largeMiB = sb.MemoryMiB
	}
	s.id, s.handOut, s.answered = sb.ID, time.Since(s.begun), time.Duration(sb.BootUS)*time.Microsecond
	uerr := use(ctx, s)
	if err := b.Client.DestroySandbox(context.WithoutCancel(ctx), sb.ID); err != nil {
		return err
	}
	return uerr
}

func (b *booting) useRestored(ctx context.Context, s started) error {
	b.restore.Add(s.answered)
	b.handOut.Add(s.handOut)
	g := b.Client.Guest(s.id)
	defer g.Close()
	for i := range execs {
		begun := time.Now()
		exit, err := g.Run(ctx, guest.Command{Args: []string{"/bin/sh", "-c", "echo"}})
		if err != nil || exit.Code != 0 {
			return fmt.Errorf("command in sandbox %s: exit %d: %w", s.id, exit.Code, err)
		}
		switch i {
		case 0:
			b.command.Add(time.Since(s.begun))
			b.firstRun.Add(time.Since(begun))
		case execs - 1:
			b.later.Add(time.Since(begun))
		}
	}
	return nil
}

// bakePatience bounds the wait for a snapshot that is being made, pollBake is how often
// is asked for it.
const (
	bakePatience = 3 * time.Minute
	pollBake     = 500 * time.Millisecond
)

// awaitSnapshots makes sure that both sizes have a snapshot. To ask for a sandbox is to
// have one made.
func (b *booting) awaitSnapshots(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bakePatience)
	defer cancel()
	for _, size := range []string{b.Size, b.Large} {
		b.Progress("a sandbox of size " + size)
		for {
			err := b.start(ctx, size, kiln.BootSnapshot, func(context.Context, started) error { return nil })
			if err == nil {
				break
			}
			if kiln.CodeOf(err) != kiln.CodeConflict {
				return err
			}
			select {
			case <-time.After(pollBake):
			case <-ctx.Done():
				return fmt.Errorf("no snapshot at size %s: %w", size, err)
			}
		}
	}
	return nil
}

// pollPool is how often the pool is asked for its state. Nothing is measured meanwhile.
const pollPool = 20 * time.Millisecond

// awaitSpawned makes sure that a VMM has been started ahead for each size, and that the
// pool has come to rest. To ask for one is to have one started.
func (b *booting) awaitSpawned(ctx context.Context, sizes ...string) error {
	ctx, cancel := context.WithTimeout(ctx, bakePatience)
	defer cancel()
	for _, size := range sizes {
		asked := false
		for {
			ready, err := b.hasSpawned(ctx, size)
			if err != nil {
				return err
			}
			if ready {
				break
			}
			if !asked {
				err := b.start(ctx, size, kiln.BootSpawned, func(context.Context, started) error { return nil })
				if err != nil && kiln.CodeOf(err) != kiln.CodeConflict {
					return err
				}
				asked = err != nil
				continue
			}
			select {
			case <-time.After(pollPool):
			case <-ctx.Done():
				return kiln.Errorf(kiln.CodeConflict, "the server starts no VMM ahead at size %s: %w", size, ctx.Err()).
					WithHint("its configuration should have pool.spawn_ahead = 1 or more")
			}
		}
	}
	return nil
}

// hasSpawned reports whether a VMM waits and no slot is lacking.
func (b *booting) hasSpawned(ctx context.Context, size string) (found bool, err error) {
	list, err := b.Client.WarmSlots(ctx)
	if err != nil {
		return false, err
	}
	for _, s := range list {
		if s.Template != b.Template {
			continue
		}
		if s.Ready < s.Target() {
			return false, nil
		}
		found = found || s.Size == size && s.Spawned > 0
	}
	return found, nil
}

func (b *booting) report() *Report {
	r := &Report{Name: "boot"}
	large := fmt.Sprintf("%s (%d MiB)", b.Large, b.largeMiB)
	bare := b.bare.Quantile(50)
	r.row("bare QEMU, process start to QMP", b.bare, bare)
	r.row("restore, request to daemon's answer", b.restore, bare)
	r.row("the same at size "+large, b.large, bare)
	r.row("restore, VMM started ahead, request to daemon's answer", b.spawned, bare)
	r.row("the same at size "+large, b.spawnedLarge, bare)
	r.row("restore, request to hand-out with identity", b.handOut, bare)
	r.row("restore, request to end of first command", b.command, bare)
	r.row("first command by itself", b.firstRun, bare)
	r.row("tenth command by itself", b.later, bare)
	r.row("cold boot, request to daemon's answer", b.cold, bare)

	restore := b.restore.Quantile(50)
	r.ratio("restore to answer / bare QEMU, p50", restore, bare, 2.5, false)
	r.ratio("restore to answer, p99 / p50", b.restore.Quantile(99), restore, 2, false)
	r.ratio("cold boot / restore, p50", b.cold.Quantile(50), restore, 20, true)
	r.ratio("restore at "+large+" / at "+b.Size+", p50", b.large.Quantile(50), restore, 1.05, false)
	spawned := b.spawned.Quantile(50)
	r.ratio("restore, VMM started ahead / bare QEMU, p50", spawned, bare, 1.3, false)
	r.ratio("restore, VMM started ahead, p99 / p50", b.spawned.Quantile(99), spawned, 2, false)
	r.ratio("the same at "+large+" / at "+b.Size+", p50", b.spawnedLarge.Quantile(50), spawned, 1.05, false)
	r.ratio("first command / tenth command, p50", b.firstRun.Quantile(50), b.later.Quantile(50), 3, false)
	return r
}
