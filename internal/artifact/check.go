package artifact

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
)

// stampName is the extended attribute in which Check remembers the modification time
// that a blob had when its content was last found right.
const stampName = "user.kiln.verified"

// Check is Verify for a blob that is about to be used, and may be used often: content is
// read only if the file was modified since it was last found right. Size is always
// compared. Where the file system keeps no extended attributes, it reads every time.
func (b *Blobs) Check(ctx context.Context, blob kiln.Blob) error {
	b.holds.touch(ctx, blob.Digest)
	path := b.Path(blob.Digest)
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("blob %s: %w", blob.Digest.Short(), err)
	}
	if info.Size() != blob.Size {
		return fmt.Errorf("blob %s is damaged: %d bytes, want %d", blob.Digest.Short(), info.Size(), blob.Size)
	}
	if readStamp(path) == stampOf(info.ModTime()) {
		return nil
	}
	// The stamp is of the time before reading: a change meanwhile makes it stale.
	if err := b.Verify(ctx, blob); err != nil {
		return err
	}
	if err := writeStamp(path, info.ModTime()); err != nil {
		return fmt.Errorf("blob %s: remember check: %w", blob.Digest.Short(), err)
	}
	return nil
}

func stampOf(modified time.Time) string { return fmt.Sprint(modified.UnixNano()) }

// writeStamp says that the content was right when the file was modified at that time.
func writeStamp(path string, modified time.Time) error {
	err := unix.Setxattr(path, stampName, []byte(stampOf(modified)), 0)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}

// readStamp returns "" when there is none.
func readStamp(path string) string {
	var buf [32]byte
	n, err := unix.Getxattr(path, stampName, buf[:])
	if err != nil {
		return ""
	}
	return string(buf[:n])
}
