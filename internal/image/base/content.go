package base

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ContentStore presents the blobs of the layout at dir in the form in which BuildKit
// wants them. It is read-only and writes nothing into the folder.
func ContentStore(dir string) content.Store { return contentStore{layout: layoutDir(dir)} }

type contentStore struct{ layout layoutDir }

func (s contentStore) Info(_ context.Context, d digest.Digest) (content.Info, error) {
	info, err := s.stat(d)
	if err != nil {
		return content.Info{}, err
	}
	return content.Info{Digest: d, Size: info.Size(), CreatedAt: info.ModTime(), UpdatedAt: info.ModTime()}, nil
}

func (s contentStore) stat(d digest.Digest) (os.FileInfo, error) {
	path, err := s.layout.blobPath(d)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if os.IsNotExist(err) {
		return nil, fmt.Errorf("blob %s: %w", d, errdefs.ErrNotFound)
	}
	return info, err
}

func (s contentStore) ReaderAt(_ context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	info, err := s.stat(desc.Digest)
	if err != nil {
		return nil, err
	}
	path, err := s.layout.blobPath(desc.Digest)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return fileReaderAt{File: f, size: info.Size()}, nil
}

type fileReaderAt struct {
	*os.File
	size int64
}

func (f fileReaderAt) Size() int64 { return f.size }

// What follows completes the interface: a layout is never changed through it.

func (contentStore) Update(context.Context, content.Info, ...string) (content.Info, error) {
	return content.Info{}, errReadOnly()
}

func (contentStore) Walk(context.Context, content.WalkFunc, ...string) error { return errReadOnly() }

func (contentStore) Delete(context.Context, digest.Digest) error { return errReadOnly() }

func (contentStore) Status(context.Context, string) (content.Status, error) {
	return content.Status{}, errReadOnly()
}

func (contentStore) ListStatuses(context.Context, ...string) ([]content.Status, error) {
	return nil, errReadOnly()
}

func (contentStore) Abort(context.Context, string) error { return errReadOnly() }

func (contentStore) Writer(context.Context, ...content.WriterOpt) (content.Writer, error) {
	return nil, errReadOnly()
}

func errReadOnly() error {
	return fmt.Errorf("image layout is read-only: %w", errdefs.ErrNotImplemented)
}
