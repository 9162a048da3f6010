package rootfs

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/ext4"
)

// FormatVersion is part of the key of every root filesystem. It rises whenever the same
// entries give other bytes.
const FormatVersion = 1

// Result describes a written root filesystem.
type Result struct {
	Blob    kiln.Blob
	Entries int // files, directories and everything else, each counted once
	// Notes are what was changed or left out, for people.
	Notes []string
	// Chunks are the SHA-256 digests of the pieces of ChunkSize bytes that the image
	// consists of; the last piece may be shorter.
	Chunks    [][sha256.Size]byte
	ChunkSize int
}

// Write writes the root filesystem src, with the agent skeleton, as an ext4 image to the
// new file dst. The image depends on the entries alone. The file is not synced; if Write
// fails it does not exist.
func Write(ctx context.Context, src kiln.EntrySource, dst string) (res Result, err error) {
	f, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return Result{}, fmt.Errorf("root filesystem: %w", err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("root filesystem: %w", cerr)
		}
		if err != nil {
			os.Remove(dst)
		}
	}()
	res.ChunkSize = ext4.ChunkSize
	out, err := ext4.Write(ctx, WithAgentSkeleton(src), f, ext4.Options{
		TempDir: filepath.Dir(dst),
		Chunk:   func(c ext4.Chunk) { res.Chunks = append(res.Chunks, c.Digest) },
	})
	if err != nil {
		return Result{}, err
	}
	res.Blob = kiln.Blob{Digest: out.Digest, Size: out.Size, Role: kiln.RoleRootfs}
	res.Entries, res.Notes = out.Inodes, out.Notes
	return res, nil
}
