package sandboxd

import (
	"errors"
	"net/http"
	"os"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
)

const (
	// metadataHeader begins the request headers that carry a file's metadata; the rest of
	// the header is the key, in lower case.
	metadataHeader = "X-Metadata-"
	// metadataAttribute begins the extended attributes that it is kept in.
	metadataAttribute = "user.kiln."
)

func metadataFrom(h http.Header) map[string]string {
	var metadata map[string]string
	for name, values := range h {
		if key, ok := strings.CutPrefix(name, metadataHeader); ok && key != "" {
			if metadata == nil {
				metadata = map[string]string{}
			}
			metadata[strings.ToLower(key)] = values[0]
		}
	}
	return metadata
}

// setMetadata replaces the metadata of a file.
func setMetadata(f *os.File, metadata map[string]string) error {
	fd := int(f.Fd())
	for _, name := range attributeNames(func(b []byte) (int, error) { return unix.Flistxattr(fd, b) }) {
		if _, kept := metadata[strings.TrimPrefix(name, metadataAttribute)]; !kept {
			if err := unix.Fremovexattr(fd, name); err != nil && !errors.Is(err, unix.ENODATA) {
				return err
			}
		}
	}
	for key, value := range metadata {
		err := unix.Fsetxattr(fd, metadataAttribute+key, []byte(value), 0)
		if errors.Is(err, unix.EOPNOTSUPP) {
			return errorf(connect.CodeInvalidArgument, "the file system of %s cannot keep metadata", f.Name())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// metadataOf returns the metadata of the file that path leads to, nil if it has none.
func metadataOf(path string) map[string]string {
	var metadata map[string]string
	for _, name := range attributeNames(func(b []byte) (int, error) { return unix.Listxattr(path, b) }) {
		size, err := unix.Getxattr(path, name, nil)
		if err != nil {
			continue
		}
		value := make([]byte, size)
		if size, err = unix.Getxattr(path, name, value); err != nil {
			continue
		}
		if metadata == nil {
			metadata = map[string]string{}
		}
		metadata[strings.TrimPrefix(name, metadataAttribute)] = string(value[:size])
	}
	return metadata
}

// attributeNames lists the metadata attributes that list finds; a file system without
// extended attributes has none.
func attributeNames(list func([]byte) (int, error)) []string {
	size, err := list(nil)
	if err != nil || size == 0 {
		return nil
	}
	buffer := make([]byte, size)
	if size, err = list(buffer); err != nil {
		return nil
	}
	var names []string
	for name := range strings.SplitSeq(string(buffer[:size]), "\x00") {
		if strings.HasPrefix(name, metadataAttribute) {
			names = append(names, name)
		}
	}
	return names
}
