package kiln

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"sort"
	"strings"
)

// Digest names immutable content: "sha256:" followed by 64 lower-case hexadecimal
// digits, the notation of the OCI image specification. The zero value names nothing.
type Digest string

const digestPrefix = "sha256:"

// DigestOf returns the digest of b.
func DigestOf(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest(digestPrefix + hex.EncodeToString(sum[:]))
}

// DigestFromSum returns the digest whose SHA-256 is sum.
func DigestFromSum(sum [sha256.Size]byte) Digest {
	return Digest(digestPrefix + hex.EncodeToString(sum[:]))
}

// DigestFromHash returns the digest that h, a SHA-256 hash, has accumulated.
func DigestFromHash(h hash.Hash) Digest {
	return Digest(digestPrefix + hex.EncodeToString(h.Sum(nil)))
}

// ParseDigest checks the notation of s.
func ParseDigest(s string) (Digest, error) {
	h, ok := strings.CutPrefix(s, digestPrefix)
	if !ok || len(h) != sha256.Size*2 {
		return "", fmt.Errorf("digest %q: want %q and %d hexadecimal digits", s, digestPrefix, sha256.Size*2)
	}
	if strings.ToLower(h) != h {
		return "", fmt.Errorf("digest %q: hexadecimal digits must be lower case", s)
	}
	if _, err := hex.DecodeString(h); err != nil {
		return "", fmt.Errorf("digest %q: %w", s, err)
	}
	return Digest(s), nil
}

// Hex returns the digits without the algorithm prefix.
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), digestPrefix) }

// Short returns the first twelve digits, for people.
func (d Digest) Short() string {
	h := d.Hex()
	if len(h) > 12 {
		return h[:12]
	}
	return h
}

// KeyBuilder computes a stage key from named parts. Every name and value is written
// with its length before it, so no choice of values can make two different lists of
// parts collide (a separator that a value may contain would).
type KeyBuilder struct{ h hash.Hash }

// NewKey starts a key for one stage. The format version is part of the key: raise it
// whenever the meaning of the parts changes.
func NewKey(stage Stage, formatVersion int) *KeyBuilder {
	k := &KeyBuilder{h: sha256.New()}
	return k.Add("stage", string(stage)).Add("format", fmt.Sprint(formatVersion))
}

// Add appends one part and returns the builder.
func (k *KeyBuilder) Add(name, value string) *KeyBuilder {
	for _, s := range []string{name, value} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(s)))
		k.h.Write(n[:])
		k.h.Write([]byte(s))
	}
	return k
}

// AddMap appends the pairs of m in the order of their names.
func (k *KeyBuilder) AddMap(name string, m map[string]string) *KeyBuilder {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	sort.Strings(names)
	k.Add(name, fmt.Sprint(len(names)))
	for _, n := range names {
		k.Add(n, m[n])
	}
	return k
}

// AddList appends the values of list in their order.
func (k *KeyBuilder) AddList(name string, list []string) *KeyBuilder {
	k.Add(name, fmt.Sprint(len(list)))
	for i, v := range list {
		k.Add(fmt.Sprint(i), v)
	}
	return k
}

// Key returns the digest over all parts added so far.
func (k *KeyBuilder) Key() Digest { return DigestFromHash(k.h) }
