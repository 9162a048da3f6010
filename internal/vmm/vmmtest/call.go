package vmmtest

import (
	"context"
	"errors"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/vmm"
)

// calls shows, with a machine that was restored and does not run yet, that a request waits
// for the guest, and that connections work after it. Drivers without calls pass.
func (s *suite) calls(t *testing.T, ctx context.Context, m vmm.Machine) {
	t.Helper()
	caller, ok := m.(vmm.Caller)
	if !ok {
		must(t, m.Resume(ctx))
		return
	}
	client := guest.Of(m)
	t.Cleanup(client.Close)
	name := kiln.NewSandboxID()
	identified := make(chan error, 1)
	go func() {
		identified <- client.SetIdentity(ctx, kiln.Identity{Hostname: name, Entropy: make([]byte, 64)})
	}()
	must(t, m.Resume(ctx))
	if err := <-identified; err != nil {
		t.Fatal(err)
	}
	if got := output(t, ctx, client, "cat", "/proc/sys/kernel/hostname", "/etc/hostname"); got != name+"\n"+name+"\n" {
		t.Errorf("the guest's names are %q, want %s", got, name)
	}
	if _, err := caller.Call(ctx, nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a call beside a connection: %v, want errors.ErrUnsupported", err)
	}
}
