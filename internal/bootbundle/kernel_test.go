package bootbundle

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/binary"
	"io"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

// fakeKernel stands for a vmlinux: 64 KiB that begin like an ELF file.
func fakeKernel() []byte {
	return append([]byte(elfMagic), bytes.Repeat([]byte("Linux version 6.1.0-test (who) "), 2114)...)[:65536]
}

// bzImage wraps a payload the way the kernel's build does.
func bzImage(payload []byte) []byte {
	image := make([]byte, 2*512+64)
	image[0x1f1] = 1
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(image[0x206:], 0x20f)
	binary.LittleEndian.PutUint32(image[0x248:], 64)
	binary.LittleEndian.PutUint32(image[0x24c:], uint32(len(payload)))
	return append(image, payload...)
}

func TestUncompressKernel(t *testing.T) {
	pack := func(open func(io.Writer) (io.WriteCloser, error), size bool) []byte {
		var b bytes.Buffer
		w, err := open(&b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(fakeKernel()); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if size {
			return binary.LittleEndian.AppendUint32(b.Bytes(), uint32(len(fakeKernel())))
		}
		return b.Bytes()
	}
	for name, image := range map[string][]byte{
		"ELF": fakeKernel(),
		"LZ4": bzImage(pack(func(w io.Writer) (io.WriteCloser, error) {
			z := lz4.NewWriter(w)
			return z, z.Apply(lz4.LegacyOption(true))
		}, true)),
		"zstd":  bzImage(pack(func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }, true)),
		"xz":    bzImage(pack(func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) }, true)),
		"gzip":  bzImage(pack(func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }, false)),
		"bzip2": bzImage(binary.LittleEndian.AppendUint32(bzip2Kernel(t), uint32(len(fakeKernel())))),
	} {
		got, err := uncompressKernel(image)
		if err != nil || !bytes.Equal(got, fakeKernel()) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		if v := kernelVersion(got); v != "6.1.0-test" {
			t.Errorf("%s: version %q", name, v)
		}
	}
}

// bzip2Kernel is fakeKernel packed with bzip2 -9, which Go cannot do.
func bzip2Kernel(t *testing.T) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(bzip2Base64)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const bzip2Base64 = "QlpoOTFBWSZTWYBOb2UAf/+dgEBjYQADBAJhn8CwARgBQaNGgyA0KDRo0GQGgUqkaADQNpPiCDRBBnAgwggzQQe4EHRBB1QQdkEHYgg4IINtPOmcCDCCDygg2QQcUEGEEHhBBqgg1gQZIIMtUEGEEGSCDgggwgg1QQd0EGEEGyCDr/F3JFOFCQgE5vZQ"

// A kernel file is input like any other: nonsense gives an error.
func TestUncompressKernelRefusesNonsense(t *testing.T) {
	gzipped := func(content []byte) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = w.Write(content)
		w.Close()
		return b.Bytes()
	}
	good := bzImage(gzipped(fakeKernel()))
	old := slices.Clone(good)
	binary.LittleEndian.PutUint16(old[0x206:], 0x207)
	huge := slices.Clone(good)
	binary.LittleEndian.PutUint32(huge[0x24c:], 1<<31)
	lie := slices.Clone(good)
	binary.LittleEndian.PutUint32(lie[len(lie)-4:], 65535)
	for name, image := range map[string][]byte{
		"empty": nil, "short": good[:0x210], "cut off": good[:len(good)-1], "old protocol": old, "payload beyond the end": huge,
		"wrong size":        lie,
		"no ELF inside":     bzImage(gzipped(bytes.Repeat([]byte("text"), 1000))),
		"unknown packing":   bzImage(bytes.Repeat([]byte("?"), 100)),
		"payload too short": bzImage([]byte("x")),
	} {
		if got, err := uncompressKernel(image); err == nil {
			t.Errorf("%s: no error, %d bytes", name, len(got))
		}
	}
}
