package rootfstest

import (
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Shared returns how many bytes of the image at path a, in blocks that are not zeros,
// stand in chunks of that size that the image at path b has too.
func Shared(t testing.TB, a, b string, size int) float64 {
	t.Helper()
	inB, found := chunks(t, b, size), 0
	for sum, data := range chunks(t, a, size) {
		if _, ok := inB[sum]; ok {
			found += data
		}
	}
	return float64(found)
}

// Overhead returns by what part the apparent size of an image exceeds what is allocated.
func Overhead(t testing.TB, path string) float64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return float64(st.Size)/float64(st.Blocks*512) - 1
}

// chunks returns the digests of the chunks of an image with the bytes that stand in them, in
// blocks that are not zeros: in all of a chunk that occurs several times.
func chunks(t testing.TB, path string, size int) map[[sha256.Size]byte]int {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const block = 4096
	var zero [block]byte
	out := map[[sha256.Size]byte]int{}
	for buf := make([]byte, size); ; {
		n, err := io.ReadFull(f, buf)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
		data := 0
		for at := 0; at < n; at += block {
			if b := buf[at:min(at+block, n)]; string(b) != string(zero[:len(b)]) {
				data += block
			}
		}
		if data > 0 {
			out[sha256.Sum256(buf[:n])] += data
		}
	}
}
