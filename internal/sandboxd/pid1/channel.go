package pid1

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/link"
)

const (
	portName  = "kiln.0" // of the virtio-serial port that the VM driver makes
	vsockPort = 49983    // where the driver connects when the VM has a vsock device
)

// channel is how the host reaches the daemon: a virtio-serial port or vsock.
type channel struct {
	port  string // device node; "" when the channel is vsock
	vsock bool
}

// listen waits for whichever channel this VM has and accepts the host's connections on it.
func listen(ctx context.Context, events *uevents) (net.Listener, error) {
	wait, cancel := context.WithTimeout(ctx, deviceTimeout)
	defer cancel()
	var ch channel
	err := events.await(wait, func() (bool, error) {
		var err error
		ch, err = findChannel()
		return ch.port != "" || ch.vsock, err
	})
	if err != nil {
		return nil, fmt.Errorf("channel to the host: no port %s and no vsock: %w", portName, err)
	}
	if ch.vsock {
		// For any number, because a clone has another than the VM that it was.
		l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, vsockPort, nil)
		if err != nil {
			return nil, fmt.Errorf("channel to the host: %w", err)
		}
		return l, nil
	}
	port, err := link.OpenPort(ch.port)
	if err != nil {
		return nil, fmt.Errorf("channel to the host: %w", err)
	}
	return link.Serve(ctx, port), nil
}

// findChannel looks for a channel among the devices that have their driver.
func findChannel() (channel, error) {
	port, err := link.FindPort("/dev", portName)
	if err == nil {
		return channel{port: port}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return channel{}, err
	}
	devices, err := filepath.Glob("/sys/bus/virtio/drivers/vmw_vsock_virtio_transport/virtio*")
	return channel{vsock: len(devices) > 0}, err
}
