package bench

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/client"
	"github.com/kilnvm/kiln/internal/guest"
)

// ExecOptions says what [Exec] measures. All fields are required.
type ExecOptions struct {
	Client         *client.Client
	Template, Size string
	Rounds         int // of starts on each path
	// MegaBytes are streamed in each direction as fast as it goes.
	MegaBytes int
	// Paced is for how long each of the slower streams flows.
	Paced time.Duration
	// Concurrent commands run in one sandbox at once.
	Concurrent int
	Progress   func(string)
}

// megaByte is 1,000,000 bytes, as rates have it.
const megaByte = 1_000_000

// Exec measures commands: the first ones of a sandbox, from a snapshot and from a warm
// slot; streams in both directions, with checksums; many at once in one sandbox. Data that
// is lost is an error.
func Exec(ctx context.Context, o ExecOptions) (*Report, error) {
	if err := o.awaitSnapshot(ctx); err != nil {
		return nil, err
	}
	r := &Report{Name: "exec"}
	if err := o.starts(ctx, r); err != nil {
		return nil, err
	}
	o.Progress("streams")
	sb, err := o.Client.CreateSandbox(ctx, o.request(""))
	if err != nil {
		return nil, err
	}
	err = o.inOne(ctx, sb.ID, r)
	return r, errors.Join(err, o.Client.DestroySandbox(context.WithoutCancel(ctx), sb.ID))
}

func (o *ExecOptions) request(mode kiln.BootMode) api.CreateSandboxRequest {
	return api.CreateSandboxRequest{Template: o.Template, Size: o.Size, BootMode: string(mode)}
}

// awaitSnapshot makes sure that there is a snapshot to start from.
func (o *ExecOptions) awaitSnapshot(ctx context.Context) error {
	b := booting{BootOptions: BootOptions{Client: o.Client, Template: o.Template, Size: o.Size, Large: o.Size, Progress: o.Progress}}
	return b.awaitSnapshots(ctx)
}

// firsts are the first commands of sandboxes that started by one path.
type firsts struct {
	answered     Sample // from the request for the sandbox to the end of its first command
	first, tenth Sample
}

func (o *ExecOptions) starts(ctx context.Context, r *Report) error {
	var restored, warm firsts
	err := withSlots(ctx, o.Client, o.Template, o.Size, 1, func() error {
		for i := range o.Rounds {
			o.Progress(fmt.Sprintf("round %d of %d", i+1, o.Rounds))
			// The slot is made first, so that its making disturbs nothing that is measured.
			if err := o.awaitSlot(ctx); err != nil {
				return err
			}
			if err := o.first(ctx, kiln.BootSnapshot, &restored); err != nil {
				return err
			}
			if err := o.first(ctx, kiln.BootWarm, &warm); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.row("restore: request to end of first command", restored.answered, 0)
	r.row("restore: first command by itself", restored.first, 0)
	r.row("restore: tenth command by itself", restored.tenth, 0)
	r.row("warm slot: request to end of first command", warm.answered, 0)
	r.row("warm slot: first command by itself", warm.first, 0)
	r.row("warm slot: tenth command by itself", warm.tenth, 0)
	r.ratio("warm slot / restore, request to end of first command, p50", warm.answered.Quantile(50), restored.answered.Quantile(50), 0.5, false)
	r.ratio("warm slot: first command / tenth, p50", warm.first.Quantile(50), warm.tenth.Quantile(50), 3, false)
	r.ratio("restore: first command / tenth, p50", restored.first.Quantile(50), restored.tenth.Quantile(50), 3, false)
	return nil
}

// awaitSlot returns when a warm slot is ready.
func (o *ExecOptions) awaitSlot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bakePatience)
	defer cancel()
	for {
		s, err := slotsOf(ctx, o.Client, o.Template, o.Size)
		if err != nil || s.Ready > 0 {
			return err
		}
		if err := wait(ctx, pollBake); err != nil {
			return fmt.Errorf("no warm slot: %w", err)
		}
	}
}

func (o *ExecOptions) first(ctx context.Context, mode kiln.BootMode, f *firsts) error {
	begun := time.Now()
	sb, err := o.Client.CreateSandbox(ctx, o.request(mode))
	if err != nil {
		return err
	}
	err = func() error {
		g := o.Client.Guest(sb.ID)
		defer g.Close()
		for i := range execs {
			each := time.Now()
			exit, err := g.Run(ctx, guest.Command{Args: []string{"/bin/sh", "-c", "echo"}})
			if err != nil || exit.Code != 0 {
				return fmt.Errorf("command in sandbox %s: exit %d: %w", sb.ID, exit.Code, err)
			}
			switch i {
			case 0:
				f.answered.Add(time.Since(begun))
				f.first.Add(time.Since(each))
			case execs - 1:
				f.tenth.Add(time.Since(each))
			}
		}
		return nil
	}()
	return errors.Join(err, o.Client.DestroySandbox(context.WithoutCancel(ctx), sb.ID))
}

// inOne measures what happens in one sandbox.
func (o *ExecOptions) inOne(ctx context.Context, id string, r *Report) error {
	g := o.Client.Guest(id)
	defer g.Close()
	for _, rate := range []int{64 << 10, 1 << 20, 10 << 20} {
		got, err := o.echo(ctx, g, rate)
		if err != nil {
			return fmt.Errorf("stream of %d KiB/s: %w", rate>>10, err)
		}
		r.figure(fmt.Sprintf("echoed stream of %d KiB/s, both ways at once: rate kept", rate>>10), got/float64(rate), 0.9, true)
	}
	if err := o.flatOut(ctx, g, r); err != nil {
		return err
	}
	return o.atOnce(ctx, g, r)
}

// echo has a command return what it is sent at a certain rate in bytes per second, and
// compares. It returns the rate that was reached.
func (o *ExecOptions) echo(ctx context.Context, g *guest.Client, rate int) (float64, error) {
	size := int(float64(rate) * o.Paced.Seconds())
	in := newChecked(rand.NewChaCha8([32]byte{1}), size)
	out := sha256.New()
	begun := time.Now()
	err := script(ctx, g, "cat", &paced{in, begun, rate, 0}, out)
	took := time.Since(begun)
	if err != nil {
		return 0, err
	}
	if in.sum() != sum(out) {
		return 0, errors.New("what came back is not what was sent")
	}
	return float64(size) / took.Seconds(), nil
}

// flatOut measures the throughput of a command's input and output and of files. What comes
// out is what went in, so that one checksum holds both directions to account. The yardstick
// is a pipe between two commands in the same sandbox: what its processor can copy.
func (o *ExecOptions) flatOut(ctx context.Context, g *guest.Client, r *Report) error {
	const file = "/tmp/kiln-bench"
	size := o.MegaBytes * megaByte
	in, out := newChecked(rand.NewChaCha8([32]byte{2}), size), sha256.New()
	upload, download := newChecked(rand.NewChaCha8([32]byte{3}), size), sha256.New()
	pipe, err := o.rate(func() error {
		return script(ctx, g, fmt.Sprintf("dd if=/dev/zero bs=100000 count=%d 2>/dev/null | cat >/dev/null", size/100_000), nil, nil)
	})
	if err != nil {
		return fmt.Errorf("pipe in the sandbox: %w", err)
	}
	r.figure("pipe between two commands in the sandbox, MB/s", pipe, 0, true)
	for _, stream := range []struct {
		what string
		run  func() error
	}{
		{"input of a command", func() error { return script(ctx, g, "mkdir -p /tmp && cat >"+file, in, nil) }},
		{"output of a command", func() error { return script(ctx, g, "cat "+file, nil, out) }},
		{"upload of a file", func() error { return g.WriteFile(ctx, file, upload) }},
		{"download of a file", func() error { return readFile(ctx, g, file, download) }},
	} {
		rate, err := o.rate(stream.run)
		if err != nil {
			return fmt.Errorf("%s: %w", stream.what, err)
		}
		r.figure(stream.what+" as fast as it goes, MB/s", rate, 100, true)
		r.figure(stream.what+" / pipe in the sandbox", rate/pipe, 0, true)
	}
	if in.sum() != sum(out) || upload.sum() != sum(download) {
		return errors.New("what came out is not what went in")
	}
	return g.Remove(ctx, file)
}

// rate returns the throughput in MB/s of what moves o.MegaBytes.
func (o *ExecOptions) rate(move func() error) (float64, error) {
	begun := time.Now()
	err := move()
	return float64(o.MegaBytes) / time.Since(begun).Seconds(), err
}

// script runs a shell command that must succeed.
func script(ctx context.Context, g *guest.Client, text string, in io.Reader, out io.Writer) error {
	exit, err := g.Run(ctx, guest.Command{Args: []string{"/bin/sh", "-c", text}, Stdin: in, Stdout: out})
	if err != nil || exit.Code != 0 {
		return fmt.Errorf("exit %d: %w", exit.Code, err)
	}
	return nil
}

func readFile(ctx context.Context, g *guest.Client, path string, to io.Writer) error {
	content, err := g.ReadFile(ctx, path)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, content)
	return errors.Join(err, content.Close())
}

// atOnce runs many commands at once, each with something of its own to say.
func (o *ExecOptions) atOnce(ctx context.Context, g *guest.Client, r *Report) error {
	o.Progress(fmt.Sprintf("%d commands at once", o.Concurrent))
	each, failures := make(Sample, o.Concurrent), make([]error, o.Concurrent)
	var wg sync.WaitGroup
	begun := time.Now()
	for i := range o.Concurrent {
		wg.Go(func() {
			var out printed
			exit, err := g.Run(ctx, guest.Command{Args: []string{"/bin/sh", "-c", fmt.Sprintf("echo $((%d * 7))", i)}, Stdout: &out})
			each[i] = time.Since(begun)
			if want := fmt.Sprintln(i * 7); err != nil || exit.Code != 0 || string(out) != want {
				failures[i] = fmt.Errorf("command %d of %d at once: exit %d, printed %q: %w", i, o.Concurrent, exit.Code, out, err)
			}
		})
	}
	wg.Wait()
	r.row(fmt.Sprintf("each of %d commands at once in one sandbox", o.Concurrent), each, 0)
	return errors.Join(failures...)
}

// checked is input whose checksum is known when it has been read.
type checked struct {
	io.Reader
	hash hash.Hash
}

func newChecked(from io.Reader, size int) *checked {
	h := sha256.New()
	return &checked{io.TeeReader(io.LimitReader(from, int64(size)), h), h}
}

func (c *checked) sum() string { return sum(c.hash) }

func sum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// paced lets no more through than rate bytes per second, in pieces of a tenth of that.
type paced struct {
	io.Reader
	begun time.Time
	rate  int
	read  int
}

// Read implements [io.Reader].
func (p *paced) Read(b []byte) (int, error) {
	time.Sleep(time.Until(p.begun.Add(time.Duration(float64(p.read) / float64(p.rate) * float64(time.Second)))))
	n, err := p.Reader.Read(b[:min(len(b), max(1, p.rate/10))])
	p.read += n
	return n, err
}

// figure notes a number that has an aim, or none if that is to be at least 0.
func (r *Report) figure(what string, value, aim float64, atLeast bool) {
	r.Ratios = append(r.Ratios, Ratio{What: strings.ReplaceAll(what, "|", "/"), Value: value, Aim: aim, AtLeast: atLeast})
}
