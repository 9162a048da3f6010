package rootfs

import (
	"fmt"
	"io"
	"os"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/ext4"
)

// Image is a root filesystem image that is looked into without mounting it.
type Image struct {
	*ext4.Image
	file *os.File
	size int64
}

// Open opens the image at path. Close it.
func Open(path string) (*Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("image: %w", err)
	}
	im, err := ext4.OpenImage(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("image %s: %w", path, err)
	}
	return &Image{Image: im, file: f, size: st.Size()}, nil
}

// Close closes the image's file.
func (im *Image) Close() error { return im.file.Close() }

// Size returns the apparent size of the image in bytes.
func (im *Image) Size() int64 { return im.size }

// Cat writes the content of the regular file at path to w.
func (im *Image) Cat(path string, w io.Writer) error {
	e, err := im.Lookup(path)
	if err != nil {
		return err
	}
	if e.Type != kiln.TypeRegular {
		return kiln.Errorf(kiln.CodeInvalid, "%q is a %s", path, TypeName(e.Type))
	}
	r, err := e.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(w, r)
	return err
}
