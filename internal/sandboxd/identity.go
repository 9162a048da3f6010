package sandboxd

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnvm/kiln/internal/sandboxd/imagefile"
)

// becomeMachine gives the machine a name and replaces every ID that says which machine
// this is. The random state must be its own already.
func (s *Server) becomeMachine(hostname string) error {
	if err := s.system.SetHostname(hostname); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if err := s.writeHostname(hostname); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if err := s.writeMachineID(); err != nil {
		return fmt.Errorf("machine ID: %w", err)
	}
	if err := s.system.SetBootID(newBootID()); err != nil {
		return fmt.Errorf("boot ID: %w", err)
	}
	if err := s.replaceHostKeys(hostname); err != nil {
		return fmt.Errorf("SSH host keys: %w", err)
	}
	return nil
}

// loopbackName is the address under which a machine finds its own name, by Debian's
// convention. Programs such as sudo look it up.
const loopbackName = "127.0.1.1"

func (s *Server) writeHostname(name string) error {
	etc := filepath.Join(s.root, "etc")
	if err := imagefile.Write(filepath.Join(etc, "hostname"), []byte(name+"\n"), 0o644); err != nil {
		return err
	}
	hosts := filepath.Join(etc, "hosts")
	old, err := imagefile.Read(hosts)
	if errors.Is(err, fs.ErrNotExist) {
		old, err = []byte("127.0.0.1\tlocalhost\n::1\tlocalhost\n"), nil
	}
	if err != nil {
		return err
	}
	return imagefile.Write(hosts, withHost(old, name), 0o644)
}

// withHost returns the hosts file with name as the only one of loopbackName.
func withHost(hosts []byte, name string) []byte {
	var out bytes.Buffer
	for line := range bytes.Lines(hosts) {
		if fields := bytes.Fields(line); len(fields) > 0 && string(fields[0]) == loopbackName {
			continue
		}
		out.Write(line)
	}
	if out.Len() > 0 && !bytes.HasSuffix(out.Bytes(), []byte("\n")) {
		out.WriteByte('\n')
	}
	fmt.Fprintf(&out, "%s\t%s\n", loopbackName, name)
	return out.Bytes()
}

// writeMachineID makes a new one as machine-id(5) describes it. D-Bus keeps its own copy
// where the two are not linked.
func (s *Server) writeMachineID() error {
	id := uuid()
	text := []byte(hex.EncodeToString(id[:]) + "\n")
	path := filepath.Join(s.root, "etc/machine-id")
	// systemd makes it read-only for all; root may write it all the same.
	if err := imagefile.Write(path, text, 0o444); err != nil {
		return err
	}
	dbus := filepath.Join(s.root, "var/lib/dbus/machine-id")
	if !isRegular(dbus) {
		return nil
	}
	return imagefile.Write(dbus, text, 0o444)
}

func isRegular(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().IsRegular()
}

// uuid returns a random UUID (RFC 9562 version 4).
func uuid() [16]byte {
	var id [16]byte
	_, _ = rand.Read(id[:]) // it never fails
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}

func newBootID() string {
	id := uuid()
	h := hex.EncodeToString(id[:])
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}
