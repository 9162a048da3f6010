package ext4

import (
	"encoding/binary"
	"fmt"
)

// Tags of POSIX ACL entries that carry an ID; the others do without one on disk.
const (
	aclUser  = 0x02
	aclGroup = 0x08
)

const (
	aclKernelVersion = 2 // of getxattr and setxattr
	aclDiskVersion   = 1
	aclNoID          = 0xffffffff
)

// aclToDisk converts a POSIX ACL from the encoding of setxattr(2) to ext4's own.
func aclToDisk(v []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(v) < 4 || le.Uint32(v) != aclKernelVersion || (len(v)-4)%8 != 0 {
		return nil, fmt.Errorf("%d bytes are no POSIX ACL", len(v))
	}
	out := le.AppendUint32(nil, aclDiskVersion)
	for e := v[4:]; len(e) > 0; e = e[8:] {
		switch tag := le.Uint16(e); tag {
		case aclUser, aclGroup:
			out = append(out, e[:8]...)
		case 0x01, 0x04, 0x10, 0x20:
			out = append(out, e[:4]...)
		default:
			return nil, fmt.Errorf("POSIX ACL has an entry of unknown tag %#x", tag)
		}
	}
	return out, nil
}

// aclFromDisk is the inverse of aclToDisk.
func aclFromDisk(v []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(v) < 4 || le.Uint32(v) != aclDiskVersion {
		return nil, fmt.Errorf("%d bytes are no ext4 ACL", len(v))
	}
	out := le.AppendUint32(nil, aclKernelVersion)
	for e := v[4:]; len(e) > 0; {
		n := 4
		if len(e) >= 2 && (le.Uint16(e) == aclUser || le.Uint16(e) == aclGroup) {
			n = 8
		}
		if len(e) < n {
			return nil, fmt.Errorf("ext4 ACL is cut short")
		}
		out = append(out, e[:4]...)
		if n == 8 {
			out = append(out, e[4:8]...)
		} else {
			out = le.AppendUint32(out, aclNoID)
		}
		e = e[n:]
	}
	return out, nil
}
