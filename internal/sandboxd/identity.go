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

	"github.com/kilnvm/kiln/internal/sandboxd/imagefile"
)

// becomeMachine gives the machine a name and replaces every ID that says which machine
// this is. The random state must be its own already.
func (s *Server) becomeMachine(hostname string, machineID, bootID [16]byte) error {
	if err := s.system.SetHostname(hostname); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if err := s.writeHostname(hostname); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if err := s.writeMachineID(hex.EncodeToString(machineID[:]) + "\n"); err != nil {
		return fmt.Errorf("machine ID: %w", err)
	}
	if err := s.system.SetBootID(formatUUID(bootID)); err != nil {
		return fmt.Errorf("boot ID: %w", err)
	}
	if s.plates.noHostKeys {
		return nil
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
	line := name + "\n"
	if len(name) == len(blankName) && s.plates.hostname.Replace(line) && s.plates.hosts.Replace(line) {
		return nil
	}
	etc := filepath.Join(s.root, "etc")
	if err := imagefile.Write(filepath.Join(etc, "hostname"), []byte(line), 0o644); err != nil {
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

// writeMachineID writes machine-id(5). D-Bus keeps its own copy where the two are not
// linked.
func (s *Server) writeMachineID(text string) error {
	if !s.plates.machineID.Replace(text) {
		// systemd makes it read-only for all; root may write it all the same.
		if err := imagefile.Write(filepath.Join(s.root, machineIDFile), []byte(text), 0o444); err != nil {
			return err
		}
	}
	if s.plates.noDBus {
		return nil
	}
	dbus := filepath.Join(s.root, dbusIDFile)
	if !isRegular(dbus) {
		return nil
	}
	return imagefile.Write(dbus, []byte(text), 0o444)
}

const (
	machineIDFile = "etc/machine-id"
	dbusIDFile    = "var/lib/dbus/machine-id"
)

func isRegular(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().IsRegular()
}

// uuid returns a random UUID.
func uuid() [16]byte {
	var id [16]byte
	_, _ = rand.Read(id[:]) // it never fails
	return asUUID(id)
}

// asUUID marks random bytes as a UUID of RFC 9562, version 4.
func asUUID(id [16]byte) [16]byte {
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}

func formatUUID(id [16]byte) string {
	h := hex.EncodeToString(id[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
