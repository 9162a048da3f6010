// Package identity is how the host tells a restored clone who it is, as a call of the link
// (package link): the same as POST /init, in a form that the guest reads with next to no
// code. On an emulated processor it is the amount of code that costs.
//
// A request is, integers being big-endian:
//
//	version   1 byte    1
//	time      8 bytes   nanoseconds since 1970; 0 leaves the clock alone
//	numbers  32 bytes   the random parts of the machine ID and of the boot ID
//	strings             entropy, host name, access token, and names and values of the
//	                    environment in turns; each is 2 bytes of length and as many bytes
//
// A request whose entropy, host name and token are all empty sets nothing but the clock.
// The reply is empty if all was done, and else says what went wrong.
package identity

import (
	"encoding/binary"
	"errors"
	"maps"
	"math"
	"slices"
	"time"
)

// Request is what makes a clone itself.
type Request struct {
	Time        time.Time // zero leaves the clock alone
	MachineID   [16]byte
	BootID      [16]byte
	Entropy     []byte
	Hostname    []byte
	AccessToken []byte
	// Env holds names and values in turns, as they are on the wire: [Pairs] takes it apart.
	Env []byte
}

const (
	version    = 1
	fixedBytes = 1 + 8 + 16 + 16
)

// ErrTooLong is returned for what a request cannot hold.
var ErrTooLong = errors.New("identity: a string is too long")

// errMalformed is returned for a request that is not one.
var errMalformed = errors.New("identity: the request is malformed")

// Marshal returns r in wire format.
func (r *Request) Marshal() ([]byte, error) {
	b := append(make([]byte, 0, 512), version)
	var ns uint64
	if !r.Time.IsZero() {
		ns = uint64(r.Time.UnixNano())
	}
	b = binary.BigEndian.AppendUint64(b, ns)
	b = append(append(b, r.MachineID[:]...), r.BootID[:]...)
	for _, s := range [][]byte{r.Entropy, r.Hostname, r.AccessToken} {
		if len(s) > math.MaxUint16 {
			return nil, ErrTooLong
		}
		b = appendString(b, s)
	}
	return append(b, r.Env...), nil
}

// MarshalEnv returns an environment as the Env of a request.
func MarshalEnv(env map[string]string) ([]byte, error) {
	var b []byte
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if len(name) > math.MaxUint16 || len(env[name]) > math.MaxUint16 {
			return nil, ErrTooLong
		}
		b = appendString(appendString(b, []byte(name)), []byte(env[name]))
	}
	return b, nil
}

func appendString(b, s []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

// Unmarshal reads a request. Its strings are parts of b.
func Unmarshal(b []byte) (Request, error) {
	var r Request
	if len(b) < fixedBytes || b[0] != version {
		return r, errMalformed
	}
	if ns := binary.BigEndian.Uint64(b[1:]); ns != 0 {
		r.Time = time.Unix(0, int64(ns))
	}
	copy(r.MachineID[:], b[9:])
	copy(r.BootID[:], b[25:])
	rest := b[fixedBytes:]
	for _, s := range []*[]byte{&r.Entropy, &r.Hostname, &r.AccessToken} {
		var ok bool
		if *s, rest, ok = cutString(rest); !ok {
			return r, errMalformed
		}
	}
	r.Env = rest
	return r, nil
}

// Pairs returns the environment of a request, nil if it is empty.
func (r *Request) Pairs() (map[string]string, error) {
	if len(r.Env) == 0 {
		return nil, nil
	}
	env := map[string]string{}
	for rest := r.Env; len(rest) > 0; {
		var name, value []byte
		var ok bool
		if name, rest, ok = cutString(rest); !ok {
			return nil, errMalformed
		}
		if value, rest, ok = cutString(rest); !ok {
			return nil, errMalformed
		}
		env[string(name)] = string(value)
	}
	return env, nil
}

func cutString(b []byte) (s, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := 2 + int(binary.BigEndian.Uint16(b))
	if n > len(b) {
		return nil, nil, false
	}
	return b[2:n], b[n:], true
}
