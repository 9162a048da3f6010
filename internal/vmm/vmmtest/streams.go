package vmmtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"hash"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/kilnvm/kiln/internal/guest"
)

// streamSize is how much each stream carries in bytes. It is several times what all buffers
// between a command and its reader hold.
const streamSize = 16 << 20

// noise returns pseudo-random bytes, and what sums up those that were read.
func noise(seed byte) (io.Reader, hash.Hash) {
	h := sha256.New()
	return io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{seed}), streamSize), h), h
}

// streams sends much both ways at once, beside a stream whose reader takes nothing until the
// others have ended. Nothing is lost, the others do not wait for it, and its command does.
func streams(t *testing.T, ctx context.Context, client *guest.Client) {
	in, sent := noise(1)
	must(t, client.WriteFile(ctx, "/tmp/noise", in))

	slow := &gated{open: make(chan struct{}), began: make(chan struct{}), h: sha256.New()}
	behind, err := client.Start(ctx, guest.Command{Args: []string{"sh", "-c", "cat /tmp/noise; echo >/tmp/written"}, Stdout: slow})
	must(t, err)
	select {
	case <-slow.began:
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}

	var others sync.WaitGroup
	for i := range 2 {
		others.Go(func() {
			in, want := noise(byte(10 + i))
			got := sha256.New()
			exit, err := client.Run(ctx, guest.Command{Args: []string{"cat"}, Stdin: in, Stdout: got})
			if err != nil || exit.Code != 0 || !equal(got, want) {
				t.Errorf("through a command: exit %d, %v; the same bytes: %v", exit.Code, err, equal(got, want))
			}
		})
	}
	others.Go(func() {
		const path = "/tmp/file"
		in, want := noise(20)
		if err := client.WriteFile(ctx, path, in); err != nil {
			t.Errorf("upload: %v", err)
			return
		}
		content, err := client.ReadFile(ctx, path)
		if err != nil {
			t.Errorf("download: %v", err)
			return
		}
		defer content.Close()
		got := sha256.New()
		if _, err := io.Copy(got, content); err != nil || !equal(got, want) {
			t.Errorf("download: %v; the same bytes: %v", err, equal(got, want))
		}
	})
	others.Wait()

	if _, err := client.Stat(ctx, "/tmp/written"); err == nil {
		t.Errorf("the command wrote %d bytes though nobody read", streamSize)
	}
	close(slow.open)
	exit, err := behind.Wait(ctx)
	if err != nil || exit.Code != 0 || !equal(slow.h, sent) {
		t.Errorf("slowly read: exit %d, %v; the same bytes: %v", exit.Code, err, equal(slow.h, sent))
	}
}

func equal(a, b hash.Hash) bool { return bytes.Equal(a.Sum(nil), b.Sum(nil)) }

// gated sums up what is written once it is open.
type gated struct {
	open, began chan struct{}
	once        sync.Once
	h           hash.Hash
}

func (g *gated) Write(p []byte) (int, error) {
	g.once.Do(func() { close(g.began) })
	<-g.open
	return g.h.Write(p)
}
