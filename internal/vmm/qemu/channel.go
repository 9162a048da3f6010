package qemu

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/kilnvm/kiln"
)

// channel is how one machine's guest daemon is reached.
type channel interface {
	// arguments returns QEMU's options for it. QEMU inherits what end returned as fd.
	arguments(fd int) []string
	// end is the descriptor that QEMU inherits; it is closed when QEMU has started.
	end() *os.File
	dial(ctx context.Context) (net.Conn, error)
	call(ctx context.Context, request []byte) (reply []byte, err error)
	// attend has the guest look out for the first call to a clone, if there are such calls.
	attend(ctx context.Context)
	// hangUp ends all connections and takes no more.
	hangUp(ctx context.Context) error
	// unread returns how many bytes QEMU has yet to read.
	unread() (int, error)
	close()
}

// Channels.
const (
	Vsock  = "vsock"
	Serial = "serial"
)

// ChooseChannel returns the channel for what [Options] say, and why it is that.
func ChooseChannel(wanted string) (channel, reason string, err error) {
	switch wanted {
	case "":
		if err := tryVsock(); err != nil {
			return Serial, fmt.Sprintf("a multiplexed virtio-serial port, because there is no vhost-vsock: %v", err), nil
		}
		return Vsock, "this host has vhost-vsock", nil
	case Serial:
		return Serial, "vm.channel in the configuration", nil
	case Vsock:
		if err := tryVsock(); err != nil {
			return "", "", kiln.Errorf(kiln.CodeUnavailable, "guests cannot be reached over vsock: %w", err).
				WithHint("modprobe vhost_vsock, or vm.channel = \"serial\"")
		}
		return Vsock, "vm.channel in the configuration", nil
	}
	return "", "", kiln.Errorf(kiln.CodeInvalid, "channel %q is neither %s nor %s", wanted, Vsock, Serial)
}

// openChannel makes the channel of a machine, which may be one that is restored. done is
// closed when it has ended, running when its guest begins to run.
func (d *Driver) openChannel(done, running <-chan struct{}, restored bool) (channel, error) {
	if d.channel == Vsock {
		return newVsock(done, running, restored)
	}
	return newSerial(done)
}

func errCaptured() error {
	return kiln.Errorf(kiln.CodeConflict, "the machine was captured and takes no connections")
}
