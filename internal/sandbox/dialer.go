package sandbox

import (
	"context"
	"net"
	"sync"

	"github.com/kilnvm/kiln/internal/vmm"
)

// dialer dials a machine. Its first connection can be made ahead of its use: that it is
// there is the daemon's first answer, and the first request need not wait for it.
type dialer struct {
	machine vmm.Machine

	mu    sync.Mutex
	first net.Conn
}

func (d *dialer) connect(ctx context.Context) error {
	conn, err := d.machine.Dial(ctx)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.first = conn
	return nil
}

func (d *dialer) dial(ctx context.Context) (net.Conn, error) {
	d.mu.Lock()
	conn := d.first
	d.first = nil
	d.mu.Unlock()
	if conn != nil {
		return conn, nil
	}
	return d.machine.Dial(ctx)
}
