package guest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
)

// The signal is none that a test started by nohup ignores: a shell in it cannot trap that.
func TestDetachAndAttach(t *testing.T) {
	c, _ := start(t)
	p, err := c.Start(t.Context(), guest.Command{Args: []string{"sh", "-c", "read a; echo got $a; trap 'echo usr1; exit 7' USR1; while :; do sleep 0.05; done"}, Stdin: neverEnds{}})
	if err != nil {
		t.Fatal(err)
	}
	p.Detach()
	list, err := c.Processes(t.Context())
	if err != nil || len(list) != 1 || list[0].PID != p.PID || list[0].Args[0] != "sh" {
		t.Fatalf("processes %+v, %v", list, err)
	}
	var out bytes.Buffer
	r, w := io.Pipe()
	printed := make(chan struct{})
	again, err := c.Attach(t.Context(), p.PID, guest.Command{Stdin: r, Stdout: io.MultiWriter(&out, &signalled{done: printed})})
	if err != nil {
		t.Fatal(err)
	}
	go fmt.Fprintln(w, "hello")
	<-printed
	if err := c.Signal(t.Context(), p.PID, int(syscall.SIGUSR1)); err != nil {
		t.Fatal(err)
	}
	exit, err := again.Wait(t.Context())
	if err != nil || exit.Code != 7 || out.String() != "got hello\nusr1\n" {
		t.Errorf("exit %+v, %v, output %q", exit, err, out.String())
	}
	// Its end can still be asked for.
	late, err := c.Attach(t.Context(), p.PID, guest.Command{})
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := late.Wait(t.Context()); err != nil || exit.Code != 7 {
		t.Errorf("later: %+v, %v", exit, err)
	}
	if _, err := c.Attach(t.Context(), 1<<30, guest.Command{}); kiln.CodeOf(err) != kiln.CodeNotFound {
		t.Errorf("attach to nothing: %v", err)
	}
	if err := c.Signal(t.Context(), 1<<30, 9); kiln.CodeOf(err) != kiln.CodeNotFound {
		t.Errorf("signal to nothing: %v", err)
	}
}

// signalled closes done with its first write.
type signalled struct {
	once sync.Once
	done chan struct{}
}

func (s *signalled) Write(b []byte) (int, error) {
	s.once.Do(func() { close(s.done) })
	return len(b), nil
}

type neverEnds struct{}

func (neverEnds) Read([]byte) (int, error) { select {} }

// slow takes 64 KiB, then waits: about 1 MiB/s.
type slow struct{ w io.Writer }

func (s slow) Write(b []byte) (int, error) {
	time.Sleep(time.Duration(len(b)) * time.Second / (8 << 20))
	return s.w.Write(b)
}

// What goes in comes out, whole and in order, however fast either side is.
func TestStreamsLoseNothing(t *testing.T) {
	c, _ := start(t)
	for name, test := range map[string]struct {
		size int
		pace func(io.Writer) io.Writer
	}{
		"fast": {64 << 20, func(w io.Writer) io.Writer { return w }},
		"slow": {4 << 20, func(w io.Writer) io.Writer { return slow{w} }},
	} {
		t.Run(name, func(t *testing.T) {
			random := rand.NewChaCha8([32]byte{byte(test.size)})
			sent, got := sha256.New(), sha256.New()
			input := io.TeeReader(io.LimitReader(random, int64(test.size)), sent)
			begun := time.Now()
			exit, err := c.Run(t.Context(), guest.Command{Args: []string{"cat"}, Stdin: input, Stdout: test.pace(got)})
			if err != nil || exit.Code != 0 {
				t.Fatalf("exit %+v, %v", exit, err)
			}
			if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
				t.Error("the output is not the input")
			}
			t.Logf("%d MiB in %s", test.size>>20, time.Since(begun))
		})
	}
}

// Two who follow one command, at their own pace, get the same of both outputs.
func TestFollowersGetTheSame(t *testing.T) {
	c, _ := start(t)
	const size = 8 << 20
	file := filepath.Join(t.TempDir(), "random")
	random := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(random)
	if err := os.WriteFile(file, random, 0o644); err != nil {
		t.Fatal(err)
	}
	stdin, feed := io.Pipe()
	outputs := [4]hash.Hash{sha256.New(), sha256.New(), sha256.New(), sha256.New()}
	first, err := c.Start(t.Context(), guest.Command{
		Args:  []string{"sh", "-c", `read go; cat "$0" & cat "$0" >&2; wait`, file},
		Stdin: stdin, Stdout: outputs[0], Stderr: outputs[1],
	})
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.Attach(t.Context(), first.PID, guest.Command{Stdout: slow{outputs[2]}, Stderr: slow{outputs[3]}})
	if err != nil {
		t.Fatal(err)
	}
	go fmt.Fprintln(feed, "go")
	for i, p := range []*guest.Process{first, second} {
		if exit, err := p.Wait(t.Context()); err != nil || exit.Code != 0 {
			t.Errorf("follower %d: exit %+v, %v", i, exit, err)
		}
	}
	want := sha256.Sum256(random)
	for i, got := range outputs {
		if !bytes.Equal(got.Sum(nil), want[:]) {
			t.Errorf("output %d of follower %d is not what the command wrote", i%2, i/2)
		}
	}
}

func TestManyCommandsAtOnce(t *testing.T) {
	const n = 200
	c, _ := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	all := make(chan struct{})
	var running sync.WaitGroup
	running.Add(n)
	for i := range n {
		wg.Go(func() {
			r, w := io.Pipe()
			var out strings.Builder
			p, err := c.Start(ctx, guest.Command{Args: []string{"cat"}, Stdin: r, Stdout: &out})
			running.Done()
			if err != nil {
				t.Error(err)
				return
			}
			<-all // every one of them runs
			fmt.Fprintf(w, "I am %d\n", i)
			w.Close()
			if exit, err := p.Wait(ctx); err != nil || exit.Code != 0 || out.String() != fmt.Sprintf("I am %d\n", i) {
				t.Errorf("%d: exit %+v, %v, output %q", i, exit, err, out.String())
			}
		})
	}
	running.Wait()
	close(all)
	wg.Wait()
}
