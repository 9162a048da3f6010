//go:build !amd64

package tandem

// accelerated reports whether compress may be called.
func accelerated() bool { return false }

func compress(a, b *state, p []byte) { panic("tandem: no accelerated implementation") }
