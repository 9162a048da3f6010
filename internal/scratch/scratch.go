// Package scratch makes the writable disk of a VM: an empty ext4 file system in a sparse
// file. It is the upper layer of the guest's root, so it is made without a journal (a
// sandbox never survives a crash of its host, and a journal would cost every clone
// 32 MiB of copying). Its inode tables are the holes of the file, and marked as zeroed:
// otherwise every guest would begin to fill them in, in every clone anew.
package scratch

import (
	"context"
	"fmt"
	"os"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/hostcmd"
)

// MaxMB is the largest scratch disk in MiB.
const MaxMB = 1 << 20

// Make writes an empty file system of sizeMB MiB to path, which must not exist.
func Make(ctx context.Context, path string, sizeMB int) (err error) {
	if sizeMB < 1 || sizeMB > MaxMB {
		return kiln.Errorf(kiln.CodeInvalid, "scratch disk of %d MiB", sizeMB).
			WithHint("disk_mb is between 1 and %d", MaxMB)
	}
	defer func() {
		if err != nil {
			os.Remove(path)
		}
	}()
	if err := makeSparse(path, int64(sizeMB)<<20); err != nil {
		return fmt.Errorf("scratch disk: %w", err)
	}
	err = hostcmd.Run(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0",
		"-E", "lazy_itable_init=0,assume_storage_prezeroed=1,nodiscard,root_owner=0:0", path)
	if err != nil {
		return fmt.Errorf("scratch disk: %w", err)
	}
	return nil
}

func makeSparse(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
