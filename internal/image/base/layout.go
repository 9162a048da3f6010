package base

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnvm/kiln"
)

// Annotations of an index entry. The first two are those that other tools use for
// names; the others are ours.
const (
	annotationName   = ocispec.AnnotationRefName  // "debian:bookworm"
	annotationFull   = "io.containerd.image.name" // "docker.io/library/debian:bookworm"
	annotationOrigin = "io.github.kilnvm.origin"  // where the content came from
	annotationSource = "io.github.kilnvm.source"  // digest of the multi-platform index it was in
	dockerIndexType  = "application/vnd.docker.distribution.manifest.list.v2+json"
	maxDocumentBytes = 8 << 20 // of a manifest, index or configuration
)

// Origins of a base image, as in kiln.BaseImage.
const (
	OriginRegistry  = "registry"
	OriginLayout    = "layout"
	OriginBootstrap = "bootstrap"
)

// Image is a base image that can be used.
type Image struct {
	kiln.BaseImage
	Ref    Name
	Config []byte // image configuration (JSON)
	Layout string // folder of the layout that has its content
	// Manifest describes the manifest for linux/amd64.
	Manifest ocispec.Descriptor
}

// layoutDir is an OCI image layout on disk, read-only.
type layoutDir string

func (l layoutDir) blobPath(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("digest %q: %w", d, err)
	}
	return filepath.Join(string(l), ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded()), nil
}

// index reads index.json. A folder that does not exist is an empty layout.
func (l layoutDir) index() (ocispec.Index, error) {
	empty := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	var index ocispec.Index
	err := readJSON(filepath.Join(string(l), ocispec.ImageIndexFile), &index)
	if errors.Is(err, os.ErrNotExist) {
		return empty, nil
	}
	return index, err
}

// find returns the image that the layout has under name; ok is false when it has none.
func (l layoutDir) find(name Name) (img Image, ok bool, err error) {
	index, err := l.index()
	if err != nil {
		return Image{}, false, fmt.Errorf("image layout %s: %w", l, err)
	}
	for _, desc := range index.Manifests {
		if !describes(desc, name) {
			continue
		}
		img, err := l.load(name, desc)
		if err != nil {
			return Image{}, false, fmt.Errorf("image %s in layout %s: %w", name, l, err)
		}
		return img, true, nil
	}
	return Image{}, false, nil
}

// describes reports whether an index entry is what name means: by digest if it is
// pinned, else by one of its name annotations.
func describes(desc ocispec.Descriptor, name Name) bool {
	if d := name.Digest(); d != "" {
		return desc.Digest.String() == d || desc.Annotations[annotationSource] == d
	}
	for _, key := range []string{annotationFull, annotationName} {
		written, err := ParseName(desc.Annotations[key])
		if err == nil && written.Full() == name.Full() {
			return true
		}
	}
	return false
}

func (l layoutDir) load(name Name, desc ocispec.Descriptor) (Image, error) {
	origin := desc.Annotations[annotationOrigin]
	if origin == "" {
		origin = OriginLayout
	}
	desc, err := l.selectPlatform(desc, 0)
	if err != nil {
		return Image{}, err
	}
	var manifest ocispec.Manifest
	if err := l.document(desc.Digest, &manifest); err != nil {
		return Image{}, err
	}
	config, err := l.checkConfig(manifest.Config.Digest)
	if err != nil {
		return Image{}, err
	}
	for _, layer := range manifest.Layers {
		if err := l.checkBlob(layer); err != nil {
			return Image{}, err
		}
	}
	return Image{
		BaseImage: kiln.BaseImage{Name: name.String(), Digest: kiln.Digest(desc.Digest), Origin: origin},
		Ref:       name, Config: config, Layout: string(l),
		Manifest: ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size},
	}, nil
}

// maxIndexDepth bounds indexes inside indexes.
const maxIndexDepth = 4

// selectPlatform follows indexes down to the manifest for linux/amd64.
func (l layoutDir) selectPlatform(desc ocispec.Descriptor, depth int) (ocispec.Descriptor, error) {
	if desc.MediaType != ocispec.MediaTypeImageIndex && desc.MediaType != dockerIndexType {
		return desc, nil
	}
	if depth == maxIndexDepth {
		return desc, errors.New("indexes are nested too deeply")
	}
	var index ocispec.Index
	if err := l.document(desc.Digest, &index); err != nil {
		return desc, err
	}
	var seen []string
	for _, m := range index.Manifests {
		if m.Platform == nil || supported(m.Platform.OS, m.Platform.Architecture) {
			return l.selectPlatform(m, depth+1)
		}
		seen = append(seen, m.Platform.OS+"/"+m.Platform.Architecture)
	}
	return desc, platformError(seen)
}

func supported(os, arch string) bool { return os == "linux" && arch == "amd64" }

// PlatformError says that an image exists, but not for linux/amd64.
type PlatformError struct{ Have []string }

func platformError(have []string) error { return &PlatformError{Have: have} }

func (e *PlatformError) Error() string {
	if len(e.Have) == 0 {
		return "is for no platform at all; linux/amd64 is needed"
	}
	return fmt.Sprintf("is for %s; linux/amd64 is needed", strings.Join(e.Have, ", "))
}

func (l layoutDir) checkConfig(d digest.Digest) ([]byte, error) {
	b, err := l.read(d)
	if err != nil {
		return nil, err
	}
	return b, checkPlatform(b)
}

func checkPlatform(config []byte) error {
	var platform struct{ OS, Architecture string }
	if err := json.Unmarshal(config, &platform); err != nil {
		return fmt.Errorf("image configuration: %w", err)
	}
	if !supported(platform.OS, platform.Architecture) {
		return platformError([]string{platform.OS + "/" + platform.Architecture})
	}
	return nil
}

// checkBlob looks at presence and size only; content is verified when it is unpacked.
func (l layoutDir) checkBlob(desc ocispec.Descriptor) error {
	path, err := l.blobPath(desc.Digest)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("layer %s: %w", desc.Digest, err)
	}
	if info.Size() != desc.Size {
		return fmt.Errorf("layer %s has %d bytes, want %d", desc.Digest, info.Size(), desc.Size)
	}
	return nil
}

func (l layoutDir) document(d digest.Digest, into any) error {
	b, err := l.read(d)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("document %s: %w", d, err)
	}
	return nil
}

// read returns a small blob after verifying it.
func (l layoutDir) read(d digest.Digest) ([]byte, error) {
	path, err := l.blobPath(d)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("document %s: %w", d, err)
	}
	if info.Size() > maxDocumentBytes {
		return nil, fmt.Errorf("document %s: %d bytes are too many", d, info.Size())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("document %s: %w", d, err)
	}
	if got := d.Algorithm().FromBytes(b); got != d {
		return nil, fmt.Errorf("document %s is damaged: its digest is %s", d, got)
	}
	return b, nil
}

func readJSON(path string, into any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
