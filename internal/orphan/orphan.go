// Package orphan finds and ends processes that outlived the server that started them.
//
// A server that was killed has no chance to end its VMs. Its successor recognises them
// in two ways: by the process that was recorded (PID and start time, so that a reused
// PID is never mistaken for it), and, for the moment between a VMM's start and its
// being recorded, by who holds the VM's private disk open for writing.
package orphan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
)

// Identify returns the process that has the given PID now.
func Identify(pid int) (kiln.Process, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return kiln.Process{}, fmt.Errorf("process %d: %w", pid, err)
	}
	// The second field, the name in parentheses, may itself hold spaces and
	// parentheses: the fields after it begin behind the last one.
	_, rest, ok := bytes.Cut(stat[max(0, bytes.LastIndexByte(stat, ')')):], []byte(") "))
	fields := strings.Fields(string(rest))
	const startTime = 22 - 3 // proc(5) counts from 1 and the first two fields are cut off
	if !ok || len(fields) <= startTime {
		return kiln.Process{}, fmt.Errorf("process %d: malformed stat", pid)
	}
	start, err := strconv.ParseUint(fields[startTime], 10, 64)
	if err != nil {
		return kiln.Process{}, fmt.Errorf("process %d: start time: %w", pid, err)
	}
	return kiln.Process{PID: pid, StartTime: start}, nil
}

// End kills p and waits until it is gone. It does nothing when p no longer exists,
// whoever has its PID today.
func End(ctx context.Context, p kiln.Process) error {
	if p.PID <= 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", p.PID, err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing to lose

	// The descriptor names one process for good, so checking after opening is safe.
	now, err := Identify(p.PID)
	if err != nil || now != p {
		return nil //nolint:nilerr // it ended, which is what was asked for
	}
	err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	return await(ctx, fd, p.PID)
}

// await returns when the process of a pidfd has ended.
func await(ctx context.Context, pidfd, pid int) error {
	for {
		const tick = 100 // milliseconds until ctx is looked at again
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, tick)
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for process %d: %w", pid, err)
		case ctx.Err() != nil:
			return fmt.Errorf("process %d does not end: %w", pid, context.Cause(ctx))
		}
	}
}

// Holders returns the processes, this one excepted, that have one of the regular files
// at or below the given paths open for writing. Paths that do not exist have none.
func Holders(paths ...string) ([]kiln.Process, error) {
	files := map[inode]bool{}
	for _, path := range paths {
		if err := addFiles(files, path); err != nil {
			return nil, err
		}
	}
	if len(files) == 0 {
		return nil, nil
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var found []kiln.Process
	for _, dir := range procs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if pid == os.Getpid() || !writesAny(dir, files) {
			continue
		}
		if p, err := Identify(pid); err == nil {
			found = append(found, p)
		}
	}
	return found, nil
}

// EndHolders kills the processes that [Holders] finds and returns how many there were.
func EndHolders(ctx context.Context, paths ...string) (int, error) {
	holders, err := Holders(paths...)
	for _, p := range holders {
		err = errors.Join(err, End(ctx, p))
	}
	return len(holders), err
}

type inode struct{ dev, ino uint64 }

func inodeOf(info fs.FileInfo) (inode, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return inode{}, false
	}
	return inode{dev: st.Dev, ino: st.Ino}, true
}

func addFiles(files map[inode]bool, root string) error {
	err := filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if i, ok := inodeOf(info); ok {
			files[i] = true
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// writesAny reports whether the process of a /proc folder has one of the files open for
// writing. A process that ends meanwhile has none.
func writesAny(procDir string, files map[inode]bool) bool {
	fds, err := os.ReadDir(filepath.Join(procDir, "fd"))
	if err != nil {
		return false
	}
	for _, fd := range fds {
		info, err := os.Stat(filepath.Join(procDir, "fd", fd.Name()))
		if err != nil {
			continue
		}
		if i, ok := inodeOf(info); ok && files[i] && opensForWriting(filepath.Join(procDir, "fdinfo", fd.Name())) {
			return true
		}
	}
	return false
}

// opensForWriting reads the flags line, which is octal, of a /proc fdinfo file.
func opensForWriting(fdinfo string) bool {
	text, err := os.ReadFile(fdinfo)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		value, ok := strings.CutPrefix(line, "flags:")
		if !ok {
			continue
		}
		flags, err := strconv.ParseUint(strings.TrimSpace(value), 8, 64)
		return err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY
	}
	return false
}
