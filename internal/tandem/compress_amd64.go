package tandem

import "golang.org/x/sys/cpu"

// accelerated reports whether compress may be called: it needs the SHA extensions, which
// the library does not report, and the SSE versions that come with them.
func accelerated() bool {
	const sha = 1 << 29 // of EBX, CPUID leaf 7
	return cpu.X86.HasSSSE3 && cpu.X86.HasSSE41 && leaf7()&sha != 0
}

// leaf7 returns what CPUID leaf 7, sub-leaf 0, leaves in EBX; 0 where there is no such leaf.
func leaf7() uint32

// compress takes the blocks of p into both states.
//
//go:noescape
func compress(a, b *state, p []byte)
