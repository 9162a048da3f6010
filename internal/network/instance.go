package network

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
)

// RunDir says which servers of this host have a number, and thereby names and addresses
// of their own: a file per number, locked by the living server, that holds the path of its
// data directory. It lies where a restart of the host clears it, as it clears namespaces.
const RunDir = "/run/kiln/network"

const maxInstances = 1 << blockBits

// instance is the right to a number.
type instance struct {
	number int
	file   *os.File
	// crashed says that an earlier server had the number and did not give it back.
	crashed bool
}

// reserve takes a number for the server with the given data directory: the one that it had
// if it crashed, else a free one, else that of another server that crashed.
func reserve(runDir, dataDir string) (*instance, error) {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	for _, fit := range []func(owner string) bool{
		func(owner string) bool { return owner == dataDir },
		func(owner string) bool { return owner == "" },
		func(string) bool { return true },
	} {
		for n := range maxInstances {
			in, err := tryReserve(filepath.Join(runDir, strconv.Itoa(n)), n, dataDir, fit)
			if in != nil || err != nil {
				return in, err
			}
		}
	}
	return nil, kiln.Errorf(kiln.CodeExhausted, "%d servers with a network run on this host, which is the limit", maxInstances)
}

// tryReserve returns nil without an error when the number is another's.
func tryReserve(path string, n int, dataDir string, fit func(string) bool) (*instance, error) {
	flags := os.O_RDWR
	if fit("") {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, fmt.Errorf("network: lock %s: %w", path, err)
	}
	owner, err := io.ReadAll(io.LimitReader(f, unix.PathMax))
	if err != nil || !fit(strings.TrimSpace(string(owner))) || !stillThere(f, path) {
		_ = f.Close() // and with it the lock
		return nil, err
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, dataDir+"\n")); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("network: %w", err)
	}
	return &instance{number: n, file: f, crashed: len(owner) > 0}, nil
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

// stillThere reports whether the locked file is the one at path: its last owner may have
// removed it between our opening and our locking it.
func stillThere(f *os.File, path string) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	now, err := os.Stat(path)
	return err == nil && os.SameFile(mine, now)
}

// giveBack ends the reservation.
func (in *instance) giveBack() error { return errors.Join(os.Remove(in.file.Name()), in.file.Close()) }

// namespace names the namespace of a slot, link the host's end of its link.
func (in *instance) namespace(slot int) string { return fmt.Sprintf("%s%d", in.namespaces(), slot) }
func (in *instance) link(slot int) string      { return fmt.Sprintf("%s%d", in.links(), slot) }

// namespaces and links begin the names of all of them.
func (in *instance) namespaces() string { return fmt.Sprintf("kiln-%d-", in.number) }
func (in *instance) links() string      { return fmt.Sprintf("kiln%d-", in.number) }

func (in *instance) table() string { return fmt.Sprintf("kiln-%d", in.number) }
