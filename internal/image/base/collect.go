package base

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// collect removes blobs and unfinished files that are old and belong to no image.
func (s *Store) collect() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	unlock, err := s.Lock(ctx, "")
	if err != nil {
		return nil // somebody else is adding an image; the next start collects
	}
	defer unlock()
	used, err := s.references()
	if err != nil {
		return err
	}
	var errs []error
	for _, pattern := range []string{ingestDir + "/*", ocispec.ImageBlobsDir + "/sha256/*"} {
		paths, err := filepath.Glob(filepath.Join(s.Dir(), pattern))
		if err != nil {
			return err
		}
		for _, path := range paths {
			info, err := os.Stat(path)
			if err != nil || used[filepath.Base(path)] || time.Since(info.ModTime()) < collectAge {
				continue
			}
			errs = append(errs, os.RemoveAll(path))
		}
	}
	return errors.Join(errs...)
}

// references returns the hexadecimal digests of all blobs that images use.
func (s *Store) references() (map[string]bool, error) {
	index, err := s.dir.index()
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	var mark func(desc ocispec.Descriptor)
	mark = func(desc ocispec.Descriptor) {
		used[desc.Digest.Encoded()] = true
		// Index and manifest at once: a document has the members of one or the other.
		var doc struct {
			Manifests, Layers []ocispec.Descriptor
			Config            ocispec.Descriptor
		}
		if s.dir.document(desc.Digest, &doc) != nil {
			return
		}
		for _, m := range doc.Manifests {
			mark(m)
		}
		for _, b := range append(doc.Layers, doc.Config) {
			if b.Digest != digest.Digest("") {
				used[b.Digest.Encoded()] = true
			}
		}
	}
	for _, desc := range index.Manifests {
		mark(desc)
	}
	return used, nil
}
