package imagefile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/sandboxd/imagefile"
)

func TestReadAndWrite(t *testing.T) {
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	for name, c := range map[string]struct {
		prepare func(path string) error
		read    string // "" means that Read finds nothing
		kept    bool   // Write cannot replace it
	}{
		"regular":        {func(p string) error { return os.WriteFile(p, []byte("text"), 0o600) }, "text", false},
		"missing":        {func(string) error { return nil }, "", false},
		"folder missing": {func(p string) error { return os.Remove(filepath.Dir(p)) }, "", false},
		"FIFO":           {func(p string) error { return unix.Mkfifo(p, 0o600) }, "", false},
		"socket": {func(p string) error {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Bind(fd, &unix.SockaddrUnix{Name: p})
		}, "", false},
		"circle":        {func(p string) error { return os.Symlink(filepath.Base(p), p) }, "", false},
		"dangling link": {func(p string) error { return os.Symlink(elsewhere, p) }, "", false},
		"device":        {func(p string) error { return os.Symlink("/dev/zero", p) }, "", false},
		"huge":          {func(p string) error { return errors.Join(os.WriteFile(p, nil, 0o600), os.Truncate(p, 1<<40)) }, "", false},
		"empty folder":  {func(p string) error { return os.Mkdir(p, 0o700) }, "", false},
		"folder":        {func(p string) error { return os.MkdirAll(filepath.Join(p, "inside"), 0o700) }, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "f") // short, for the socket
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			path := filepath.Join(dir, "etc", "file")
			if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := c.prepare(path); err != nil {
				t.Fatal(err)
			}
			got, err := imagefile.Read(path)
			if string(got) != c.read || (c.read == "") != errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Read: %q, %v", got, err)
			}
			if err := imagefile.Write(path, []byte("new"), 0o644); (err != nil) != c.kept {
				t.Errorf("Write: %v", err)
			}
			if c.kept {
				return
			}
			if got, err := imagefile.Read(path); string(got) != "new" || err != nil {
				t.Errorf("Read after Write: %q, %v", got, err)
			}
		})
	}
	if _, err := os.Lstat(elsewhere); err == nil {
		t.Error("Write followed a link")
	}
}
