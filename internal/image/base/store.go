package base

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
)

// Store is the OCI layout that Kiln itself fills. Several processes may use it at once;
// a blob is complete when it has its name, an image exists when index.json names it.
type Store struct{ dir layoutDir }

// Folder and files beside what the layout specification names.
const (
	ingestDir = "ingest"
	lockFile  = ".lock"
)

// collectAge is how old an unreferenced blob must be to be removed: a build that began
// before its image was replaced may still read it.
const collectAge = 24 * time.Hour

// OpenStore opens the store at dir, makes it if needed, and removes blobs that no image
// uses any more.
func OpenStore(dir string) (*Store, error) {
	s := &Store{dir: layoutDir(dir)}
	for _, sub := range []string{ingestDir, filepath.Join(ocispec.ImageBlobsDir, "sha256")} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	marker := filepath.Join(dir, ocispec.ImageLayoutFile)
	if _, err := os.Stat(marker); errors.Is(err, os.ErrNotExist) {
		content, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
		if err != nil {
			return nil, err
		}
		if err := s.writeFile(marker, content); err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	return s, s.collect()
}

// Dir is the folder of the store.
func (s *Store) Dir() string { return string(s.dir) }

// Find returns the image stored under name; ok is false when there is none.
func (s *Store) Find(name Name) (img Image, ok bool, err error) { return s.dir.find(name) }

// List returns all images of the store that can be used.
func (s *Store) List() ([]Image, error) {
	index, err := s.dir.index()
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	var images []Image
	for _, desc := range index.Manifests {
		name, err := ParseName(desc.Annotations[annotationFull])
		if err != nil {
			continue
		}
		img, err := s.dir.load(name, desc)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
		images = append(images, img)
	}
	return images, nil
}

// Blob is a blob being written. Commit or Abort ends it.
type Blob struct {
	store *Store
	file  *os.File
	hash  hash.Hash
	size  int64
}

// NewBlob starts a blob of unknown digest.
func (s *Store) NewBlob() (*Blob, error) {
	f, err := os.CreateTemp(filepath.Join(s.Dir(), ingestDir), "blob-")
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	return &Blob{store: s, file: f, hash: sha256.New()}, nil
}

func (b *Blob) Write(p []byte) (int, error) {
	n, err := b.file.Write(p)
	b.hash.Write(p[:n])
	b.size += int64(n)
	return n, err
}

// Commit gives the blob its name and returns its descriptor. It is durable on return.
func (b *Blob) Commit(mediaType string) (ocispec.Descriptor, error) {
	defer b.Abort()
	d := digest.NewDigest(digest.SHA256, b.hash)
	path, err := b.store.dir.blobPath(d)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := errors.Join(b.file.Chmod(0o644), b.file.Sync(), os.Rename(b.file.Name(), path), syncDir(filepath.Dir(path))); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("image store: %w", err)
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: b.size}, nil
}

// Abort removes what was written. After Commit it only closes the file.
func (b *Blob) Abort() {
	b.file.Close()
	os.Remove(b.file.Name())
}

// Put stores a blob that is at hand. JSON documents go through here.
func (s *Store) Put(mediaType string, content []byte) (ocispec.Descriptor, error) {
	b, err := s.NewBlob()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer b.Abort()
	if _, err := b.Write(content); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("image store: %w", err)
	}
	return b.Commit(mediaType)
}

// PutFrom stores the content of r, which must have the digest that desc names.
func (s *Store) PutFrom(desc ocispec.Descriptor, r io.Reader) error {
	b, err := s.NewBlob()
	if err != nil {
		return err
	}
	defer b.Abort()
	if _, err := io.Copy(b, r); err != nil {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, b.hash); got != desc.Digest {
		return fmt.Errorf("blob %s arrived damaged: its digest is %s", desc.Digest, got)
	}
	_, err = b.Commit(desc.MediaType)
	return err
}

// Has reports whether the blob is there with the size that desc says.
func (s *Store) Has(desc ocispec.Descriptor) bool { return s.dir.checkBlob(desc) == nil }

// Entry is an image to be named in the index.
type Entry struct {
	Name     Name
	Manifest ocispec.Descriptor
	Origin   string
	Source   string // digest of the multi-platform index it came from; may be empty
}

// Add makes an image visible whose blobs are all stored. It replaces an image of the
// same name.
func (s *Store) Add(ctx context.Context, e Entry) (Image, error) {
	unlock, err := s.Lock(ctx, "")
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	index, err := s.dir.index()
	if err != nil {
		return Image{}, fmt.Errorf("image store: %w", err)
	}
	desc := e.Manifest
	desc.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	desc.Annotations = map[string]string{
		annotationName:   e.Name.String(),
		annotationFull:   e.Name.Full(),
		annotationOrigin: e.Origin,
	}
	if e.Source != "" {
		desc.Annotations[annotationSource] = e.Source
	}
	kept := []ocispec.Descriptor{desc}
	for _, old := range index.Manifests {
		if old.Annotations[annotationFull] != e.Name.Full() {
			kept = append(kept, old)
		}
	}
	index.Manifests = kept
	content, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return Image{}, err
	}
	if err := s.writeFile(filepath.Join(s.Dir(), ocispec.ImageIndexFile), append(content, '\n')); err != nil {
		return Image{}, fmt.Errorf("image store: %w", err)
	}
	return s.dir.load(e.Name, desc)
}

// Lock takes a lock that all processes respect: the one of the index (""), or one of
// the caller's naming. It waits until ctx ends.
func (s *Store) Lock(ctx context.Context, what string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.Dir(), lockFile+what), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	// flock cannot be cancelled, so a goroutine waits for it: it lets go of a lock that
	// nobody wants any more.
	locked := make(chan error, 1)
	go func() { locked <- unix.Flock(int(f.Fd()), unix.LOCK_EX) }()
	select {
	case err := <-locked:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock image store: %w", err)
		}
		return func() { f.Close() }, nil
	case <-ctx.Done():
		go func() {
			<-locked
			f.Close()
		}()
		return nil, kiln.Errorf(kiln.CodeCanceled, "waiting for the image store: %w", context.Cause(ctx))
	}
}

// writeFile replaces a file at once and durably.
func (s *Store) writeFile(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Join(s.Dir(), ingestDir), "file-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return errors.Join(os.Rename(f.Name(), path), syncDir(filepath.Dir(path)))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
