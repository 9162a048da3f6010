package bootbundle

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"regexp"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

// maxKernel bounds an uncompressed kernel, against nonsense in a given file.
const maxKernel = 1 << 30

const elfMagic = "\x7fELF"

// uncompressKernel returns the ELF vmlinux in image, which is one itself or a bzImage as
// Documentation/arch/x86/boot.rst of the kernel describes it. Firecracker boots nothing else, and
// QEMU gets to the kernel's start sooner, since no emulated CPU has to unpack it.
func uncompressKernel(image []byte) ([]byte, error) {
	if bytes.HasPrefix(image, []byte(elfMagic)) {
		return image, nil
	}
	payload, err := bzImagePayload(image)
	if err != nil {
		return nil, err
	}
	vmlinux, err := decompress(payload)
	if err != nil {
		return nil, fmt.Errorf("unpack bzImage: %w", err)
	}
	if !bytes.HasPrefix(vmlinux, []byte(elfMagic)) {
		return nil, errors.New("the bzImage holds no ELF file")
	}
	return vmlinux, nil
}

// bzImagePayload returns the compressed kernel in a bzImage.
func bzImagePayload(image []byte) ([]byte, error) {
	const (
		setupSects    = 0x1f1 // 1 byte: real-mode code, in sectors
		headerMagic   = 0x202 // "HdrS"
		version       = 0x206 // 2 bytes: payload fields exist since 2.08
		payloadOffset = 0x248 // 4 bytes, from the start of protected-mode code
		payloadLength = 0x24c // 4 bytes
		headerEnd     = 0x250
		sector        = 512
	)
	if len(image) < headerEnd || string(image[headerMagic:headerMagic+4]) != "HdrS" {
		return nil, errors.New("neither an ELF file nor a bzImage")
	}
	if v := binary.LittleEndian.Uint16(image[version:]); v < 0x208 {
		return nil, fmt.Errorf("bzImage of boot protocol %d.%02d, want 2.08 or later", v>>8, v&0xff)
	}
	sectors := int64(image[setupSects])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*sector + int64(binary.LittleEndian.Uint32(image[payloadOffset:]))
	end := start + int64(binary.LittleEndian.Uint32(image[payloadLength:]))
	if start >= end || end > int64(len(image)) {
		return nil, errors.New("bzImage is cut off")
	}
	return image[start:end], nil
}

// decompress unpacks what the kernel's build packed: any of its formats, followed, except with
// gzip, which has that itself, by the unpacked size in four bytes.
func decompress(payload []byte) ([]byte, error) {
	if len(payload) < 8 {
		return nil, errors.New("payload is cut off")
	}
	size := int64(binary.LittleEndian.Uint32(payload[len(payload)-4:]))
	body := payload[:len(payload)-4]
	var r io.Reader
	var err error
	switch {
	case bytes.HasPrefix(payload, []byte{0x02, 0x21, 0x4c, 0x18}):
		r = lz4.NewReader(bytes.NewReader(body))
	case bytes.HasPrefix(payload, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		var z *zstd.Decoder
		if z, err = zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderMaxMemory(maxKernel)); err == nil {
			defer z.Close()
			r = z
		}
	case bytes.HasPrefix(payload, []byte("\xfd7zXZ\x00")):
		r, err = xz.NewReader(bytes.NewReader(body))
	case bytes.HasPrefix(payload, []byte{0x1f, 0x8b}):
		r, err = gzip.NewReader(bytes.NewReader(payload))
	case bytes.HasPrefix(payload, []byte("BZh")):
		r = bzip2.NewReader(bytes.NewReader(body))
	default:
		return nil, fmt.Errorf("unknown compression (it begins with %x)", payload[:6])
	}
	if err != nil {
		return nil, err
	}
	if size > maxKernel {
		return nil, fmt.Errorf("kernel of %d bytes", size)
	}
	out := bytes.NewBuffer(make([]byte, 0, size+bytes.MinRead))
	if _, err := io.Copy(out, io.LimitReader(r, size+1)); err != nil {
		return nil, err
	}
	if int64(out.Len()) != size {
		return nil, fmt.Errorf("it unpacks to %d bytes, want %d", out.Len(), size)
	}
	return out.Bytes(), nil
}

var versionBanner = regexp.MustCompile(`Linux version ([0-9][^ \x00]*) `)

// kernelVersion returns the release that the kernel will print when it boots, or "unknown".
func kernelVersion(vmlinux []byte) string {
	if m := versionBanner.FindSubmatch(vmlinux); m != nil {
		return string(m[1])
	}
	return "unknown"
}
