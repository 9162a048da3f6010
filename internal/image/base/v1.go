package base

import (
	"fmt"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// V1 presents the image in the form in which it can be written as another format.
func (i Image) V1() (v1.Image, error) {
	return partial.CompressedToImage(storedImage{i, layoutDir(i.Layout)})
}

type storedImage struct {
	image  Image
	layout layoutDir
}

func (s storedImage) RawConfigFile() ([]byte, error) { return s.image.Config, nil }

func (s storedImage) MediaType() (types.MediaType, error) {
	var manifest ocispec.Manifest
	err := s.layout.document(digest.Digest(s.image.Digest), &manifest)
	return types.MediaType(manifest.MediaType), err
}

func (s storedImage) RawManifest() ([]byte, error) {
	return s.layout.read(digest.Digest(s.image.Digest))
}

func (s storedImage) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	var manifest ocispec.Manifest
	if err := s.layout.document(digest.Digest(s.image.Digest), &manifest); err != nil {
		return nil, err
	}
	for _, desc := range append(manifest.Layers, manifest.Config) {
		if desc.Digest.String() == h.String() {
			return storedLayer{desc, s.layout}, nil
		}
	}
	return nil, fmt.Errorf("layer %s: no such layer", h)
}

type storedLayer struct {
	desc   ocispec.Descriptor
	layout layoutDir
}

func (l storedLayer) Digest() (v1.Hash, error) { return v1.NewHash(l.desc.Digest.String()) }
func (l storedLayer) Size() (int64, error)     { return l.desc.Size, nil }
func (l storedLayer) MediaType() (types.MediaType, error) {
	return types.MediaType(l.desc.MediaType), nil
}

func (l storedLayer) Compressed() (io.ReadCloser, error) {
	path, err := l.layout.blobPath(l.desc.Digest)
	if err != nil {
		return nil, err
	}
	return os.Open(path)
}
