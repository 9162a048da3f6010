package ext4

import "math/bits"

// hashSeed is the seed of the directory hash, four 32-bit words as in the superblock.
type hashSeed [4]uint32

// dirHash computes the half-MD4 hash of a name with unsigned characters
// (hash version 4): the major hash by which an indexed directory is sorted, with bit 0
// clear, and the minor hash that orders names of one major hash.
func dirHash(name []byte, seed hashSeed) (major, minor uint32) {
	buf := [4]uint32{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}
	if seed != (hashSeed{}) {
		buf = seed
	}
	for rest := name; len(rest) > 0; {
		var in [8]uint32
		packName(rest, &in)
		halfMD4(&buf, &in)
		rest = rest[min(32, len(rest)):]
	}
	major = buf[1] &^ 1
	if major == 0xfffffffe { // reserved: end of directory
		major = 0xfffffffc
	}
	return major, buf[2]
}

// packName fills in with up to 32 bytes of name, padded with the length of the rest.
func packName(name []byte, in *[8]uint32) {
	pad := uint32(len(name)) | uint32(len(name))<<8
	pad |= pad << 16
	n := min(len(name), 32)
	val, w := pad, 0
	for i := range n {
		val = uint32(name[i]) + val<<8
		if i%4 == 3 {
			in[w] = val
			val = pad
			w++
		}
	}
	if w < 8 {
		in[w] = val
		w++
	}
	for ; w < 8; w++ {
		in[w] = pad
	}
}

// halfMD4 is the cut-down MD4 transformation that ext4 uses.
func halfMD4(buf *[4]uint32, in *[8]uint32) {
	const k2, k3 = 0x5a827999, 0x6ed9eba1
	f := func(x, y, z uint32) uint32 { return z ^ (x & (y ^ z)) }
	g := func(x, y, z uint32) uint32 { return (x & y) + ((x ^ y) & z) }
	h := func(x, y, z uint32) uint32 { return x ^ y ^ z }
	a, b, c, d := buf[0], buf[1], buf[2], buf[3]
	for i := 0; i < 8; i += 4 {
		a = bits.RotateLeft32(a+f(b, c, d)+in[i], 3)
		d = bits.RotateLeft32(d+f(a, b, c)+in[i+1], 7)
		c = bits.RotateLeft32(c+f(d, a, b)+in[i+2], 11)
		b = bits.RotateLeft32(b+f(c, d, a)+in[i+3], 19)
	}
	for i := 1; i >= 0; i-- {
		a = bits.RotateLeft32(a+g(b, c, d)+in[i]+k2, 3)
		d = bits.RotateLeft32(d+g(a, b, c)+in[i+2]+k2, 5)
		c = bits.RotateLeft32(c+g(d, a, b)+in[i+4]+k2, 9)
		b = bits.RotateLeft32(b+g(c, d, a)+in[i+6]+k2, 13)
	}
	for i := 3; i >= 1; i -= 2 {
		a = bits.RotateLeft32(a+h(b, c, d)+in[i]+k3, 3)
		d = bits.RotateLeft32(d+h(a, b, c)+in[i+4]+k3, 9)
		c = bits.RotateLeft32(c+h(d, a, b)+in[i-1]+k3, 11)
		b = bits.RotateLeft32(b+h(c, d, a)+in[i+3]+k3, 15)
	}
	buf[0] += a
	buf[1] += b
	buf[2] += c
	buf[3] += d
}
