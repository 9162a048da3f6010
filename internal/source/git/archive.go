package git

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/kilnvm/kiln"
)

// Archive writes the context at a fetched commit as a tar archive. The same commit gives
// the same bytes. Warnings tell what such an archive cannot have.
func (r *Remote) Archive(ctx context.Context, commit string, w io.Writer) (warnings []string, err error) {
	list, err := r.list(ctx, commit)
	if err != nil {
		return nil, err
	}
	if warnings, err = r.check(list); err != nil {
		return nil, err
	}
	blobs := make([]treeEntry, 0, len(list))
	for _, e := range list {
		if e.kind == "blob" {
			blobs = append(blobs, e)
		}
	}
	out := tar.NewWriter(w)
	if err := r.blobs(ctx, blobs, func(e treeEntry, content io.Reader) error { return addBlob(out, e, content) }); err != nil {
		return nil, err
	}
	return warnings, out.Close()
}

// check holds the tree against the limits before a byte is copied.
func (r *Remote) check(list []treeEntry) (warnings []string, err error) {
	limits := r.opts.Limits.WithDefaults()
	if len(list) > limits.Entries {
		return nil, kiln.Errorf(kiln.CodeInvalid, "git repository %s: %d files, more than the %d that a build context may have", r.src.URL, len(list), limits.Entries).
			WithHint("build a folder of it with --dir")
	}
	var total int64
	for _, e := range list {
		if e.size > limits.Bytes-total {
			return nil, kiln.Errorf(kiln.CodeInvalid, "git repository %s: more than the %d MiB that a build context may have", r.src.URL, limits.Bytes>>20).
				WithHint("build a folder of it with --dir")
		}
		total += e.size
		if e.kind == "commit" {
			warnings = append(warnings, fmt.Sprintf("%s is a submodule; submodules are not fetched", e.path))
		}
	}
	return warnings, nil
}

// maxLink is the longest symlink target in bytes.
const maxLink = 4095

func addBlob(out *tar.Writer, e treeEntry, content io.Reader) error {
	// One time for all makes equal trees equal bytes; it is after 1980 because zip
	// archives (Python wheels) can hold no earlier one.
	hdr := &tar.Header{Name: e.path, Mode: 0o644, ModTime: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), Format: tar.FormatPAX}
	switch e.mode {
	case "120000":
		if e.size > maxLink {
			return kiln.Errorf(kiln.CodeInvalid, "git: symlink %q has a target longer than %d bytes", e.path, maxLink)
		}
		var target strings.Builder
		if _, err := io.Copy(&target, content); err != nil {
			return fmt.Errorf("git: %w", err)
		}
		hdr.Typeflag, hdr.Linkname, hdr.Mode = tar.TypeSymlink, target.String(), 0o777
		return writeHeader(out, hdr)
	case "100755":
		hdr.Mode = 0o755
	}
	hdr.Typeflag, hdr.Size = tar.TypeReg, e.size
	if err := writeHeader(out, hdr); err != nil {
		return err
	}
	if _, err := io.Copy(out, content); err != nil {
		return fmt.Errorf("git: %s: %w", e.path, err)
	}
	return nil
}

func writeHeader(out *tar.Writer, hdr *tar.Header) error {
	if err := out.WriteHeader(hdr); err != nil {
		return kiln.Errorf(kiln.CodeInvalid, "git: %q cannot be part of a build context: %w", hdr.Name, err)
	}
	return nil
}
