package sandboxd

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// openConnectionsError says why the machine cannot be captured.
type openConnectionsError struct{ connections []string }

func (e *openConnectionsError) Error() string {
	return fmt.Sprintf("%d TCP connection(s) are open and would be dead in every clone: %s",
		len(e.connections), strings.Join(e.connections, ", "))
}

type tcpConnection struct {
	local, remote netip.AddrPort
	inode         string
}

// openConnections reads the kernel's tables below proc. A connection between two processes
// of this machine is left out: both ends are in the snapshot, so it lives on in a clone.
func openConnections(proc string) ([]string, error) {
	var open []tcpConnection
	for _, table := range []string{"net/tcp", "net/tcp6"} {
		found, err := readTCPTable(filepath.Join(proc, table))
		if err != nil {
			return nil, err
		}
		open = append(open, found...)
	}
	if len(open) == 0 {
		return nil, nil
	}
	owners := socketOwners(proc)
	list := make([]string, len(open))
	for i, c := range open {
		list[i] = fmt.Sprintf("%v to %v", c.local, c.remote)
		if owner, ok := owners[c.inode]; ok {
			list[i] += " of " + owner
		}
	}
	return list, nil
}

// Socket states of the kernel (net/tcp_states.h) in which no other end is known, or no
// process waits for one any more.
const (
	tcpTimeWait = "06"
	tcpClose    = "07"
	tcpListen   = "0A"
)

func readTCPTable(path string) ([]tcpConnection, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // a kernel without this protocol
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var open []tcpConnection
	lines := bufio.NewScanner(f)
	lines.Scan() // the heading
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 {
			return nil, fmt.Errorf("%s: unexpected line %q", path, lines.Text())
		}
		switch fields[3] {
		case tcpTimeWait, tcpClose, tcpListen:
			continue
		}
		local, err := parseSocketAddress(fields[1])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		remote, err := parseSocketAddress(fields[2])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if !remote.Addr().IsLoopback() && remote.Addr() != local.Addr() {
			open = append(open, tcpConnection{local, remote, fields[9]})
		}
	}
	return open, lines.Err()
}

// parseSocketAddress reads "0100007F:1F90": 32-bit words in the machine's byte order, and
// the port as a plain number.
func parseSocketAddress(s string) (netip.AddrPort, error) {
	host, port, ok := strings.Cut(s, ":")
	words, err := hex.DecodeString(host)
	number, portErr := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || portErr != nil || len(words)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("socket address %q", s)
	}
	for i := 0; i < len(words); i += 4 {
		binary.NativeEndian.PutUint32(words[i:], binary.BigEndian.Uint32(words[i:]))
	}
	addr, ok := netip.AddrFromSlice(words)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("socket address %q", s)
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(number)), nil
}

// socketOwners maps socket inodes to "NAME (process N)". It is help for a message: what
// cannot be read is left out.
func socketOwners(proc string) map[string]string {
	owners := map[string]string{}
	descriptors, _ := filepath.Glob(filepath.Join(proc, "[0-9]*/fd/*"))
	for _, d := range descriptors {
		target, err := os.Readlink(d)
		if err != nil {
			continue
		}
		inode, ok := strings.CutPrefix(target, "socket:[")
		if !ok {
			continue
		}
		process := filepath.Dir(filepath.Dir(d))
		comm, _ := os.ReadFile(filepath.Join(process, "comm"))
		owners[strings.TrimSuffix(inode, "]")] =
			fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(comm)), filepath.Base(process))
	}
	return owners
}
