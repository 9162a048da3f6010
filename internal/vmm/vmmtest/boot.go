package vmmtest

import (
	"context"
	"testing"

	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/vmm"
)

// Boot boots a machine for a test of something else and waits for its daemon. end ends both.
func Boot(ctx context.Context, t testing.TB, driver vmm.Driver, cfg vmm.Config) (m vmm.Machine, client *guest.Client, end func()) {
	t.Helper()
	m, err := driver.Boot(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	client = guest.New(m.Dial)
	end = func() {
		client.Close()
		if err := m.Kill(); err != nil {
			t.Error(err)
		}
	}
	if err := client.WaitReady(ctx); err != nil {
		end()
		t.Fatal(err)
	}
	return m, client, end
}
