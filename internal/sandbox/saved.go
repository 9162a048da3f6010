package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/vmm"
)

// A paused sandbox is the files in its folder and its row, nothing else:
//
//	scratch          its disk
//	saved/memory     guest memory, as large as the VM's, sparse
//	saved/vmstate    CPUs and devices
//	saved/vm.json    what VM that is, and what can restore it
//
// They are complete and on the disk before the row says "paused". A woken sandbox goes on
// with the memory file as the base of its own memory; the next pause replaces it.
const (
	savedName   = "saved"
	unsavedName = "saved.new" // being written
	vmName      = "vm.json"
)

// savedVM is the content of vm.json.
type savedVM struct {
	VMM         vmm.Info    `json:"vmm"`
	Spec        kiln.VMSpec `json:"spec"`
	MemoryBytes int64       `json:"memory_bytes"`
	Console     string      `json:"console"` // name of the console log
	Network     bool        `json:"network"` // it has a network card
	SavedAt     time.Time   `json:"saved_at"`
}

func stateIn(saved string) vmm.State {
	return vmm.State{Memory: filepath.Join(saved, kiln.RoleMemory), State: filepath.Join(saved, kiln.RoleVMState)}
}

// writeSaved completes what a capture has put into folder and brings it to the disk.
func writeSaved(folder string, vm savedVM) error {
	text, err := json.Marshal(vm)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(folder, vmName), text, 0o600); err != nil {
		return err
	}
	state := stateIn(folder)
	return errors.Join(syncPath(state.Memory), syncPath(state.State), syncPath(filepath.Join(folder, vmName)),
		syncPath(scratchIn(filepath.Dir(folder))), syncPath(folder))
}

// keepSaved makes what was written the saved VM of the sandbox in dir.
func keepSaved(dir string) error {
	if err := os.RemoveAll(filepath.Join(dir, savedName)); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(dir, unsavedName), filepath.Join(dir, savedName)); err != nil {
		return err
	}
	return errors.Join(syncPath(dir), syncPath(filepath.Dir(dir)))
}

// readSaved returns what is saved in a sandbox's folder, and an error if it is damaged or
// cannot be restored here now.
func (m *Manager) readSaved(dir string) (savedVM, error) {
	var vm savedVM
	folder := filepath.Join(dir, savedName)
	text, err := os.ReadFile(filepath.Join(folder, vmName))
	if err != nil {
		return vm, damaged(err)
	}
	if err := json.Unmarshal(text, &vm); err != nil {
		return vm, damaged(fmt.Errorf("%s: %w", vmName, err))
	}
	if now := m.opts.Driver.Info(); vm.VMM != now {
		return vm, kiln.Errorf(kiln.CodeUnavailable, "it was paused on %s %s (%s) and this host has %s %s (%s)",
			vm.VMM.Name, vm.VMM.Version, vm.VMM.CPU, now.Name, now.Version, now.CPU).
			WithHint("wake it on a host like the one that paused it, or destroy it")
	}
	if vm.Network != (m.opts.Network != nil) {
		return vm, kiln.Errorf(kiln.CodeUnavailable, "it was paused by a server that had network.enabled = %v", vm.Network).
			WithHint("change the server's configuration back, or destroy it")
	}
	if info, err := os.Stat(stateIn(folder).Memory); err != nil {
		return vm, damaged(err)
	} else if info.Size() != vm.MemoryBytes {
		return vm, damaged(fmt.Errorf("memory has %d bytes, not %d", info.Size(), vm.MemoryBytes))
	}
	for _, path := range []string{stateIn(folder).State, scratchIn(dir)} {
		if _, err := os.Stat(path); err != nil {
			return vm, damaged(err)
		}
	}
	return vm, nil
}

var errDamaged = errors.New("its saved state is damaged")

func damaged(err error) error { return fmt.Errorf("%w: %w", errDamaged, err) }

// isDamaged tells what can never be woken from what cannot be woken now.
func isDamaged(err error) bool { return errors.Is(err, errDamaged) || errors.Is(err, vmm.ErrBadState) }

// shareSaved gives the sandbox in dir the saved VM of the one in from: the files are the
// same, as nobody changes them, only the description is its own.
func shareSaved(ctx context.Context, dir, from string) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if err := os.Mkdir(filepath.Join(dir, savedName), 0o700); err != nil {
		return err
	}
	for _, name := range []string{kiln.RoleMemory, kiln.RoleVMState, vmName} {
		err := os.Link(filepath.Join(from, savedName, name), filepath.Join(dir, savedName, name))
		if err != nil {
			return err
		}
	}
	return nil
}

// syncPath brings a file or folder to the disk.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !errors.Is(err, unix.EINVAL) { // some file systems have no sync of folders
		return err
	}
	return nil
}
