package qemu

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnvm/kiln/internal/vmm"
)

// Whatever happens to a state file, QEMU sees the state that was saved or nothing.
func TestHazard09DamagedStateIsRefused(t *testing.T) {
	stream := bytes.Repeat([]byte("QEVM"), 1000)
	whole := encodeState(stream)
	if got, err := decodeState(whole); err != nil || !bytes.Equal(got, stream) {
		t.Fatalf("intact: %v", err)
	}
	rng := rand.New(rand.NewPCG(9, 9))
	for range 5000 {
		flipped := bytes.Clone(whole)
		flipped[rng.IntN(len(flipped))] ^= 1 << rng.IntN(8)
		if _, err := decodeState(flipped); err == nil {
			t.Fatal("a bit was flipped and it was accepted")
		}
		if _, err := decodeState(whole[:rng.IntN(len(whole))]); err == nil {
			t.Fatal("it was truncated and accepted")
		}
	}
	if _, err := decodeState(append(bytes.Clone(whole), 0)); err == nil {
		t.Fatal("a byte was appended and it was accepted")
	}
	if _, err := readState(filepath.Join(t.TempDir(), "none")); !errors.Is(err, vmm.ErrBadState) {
		t.Fatalf("missing: %v", err)
	}
}

func TestConsoleKeepsTheEnd(t *testing.T) {
	c, err := newConsole(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	line := strings.Repeat("x", 1023) + "\n"
	for range 5 * maxConsole / len(line) {
		_, _ = c.Write([]byte(line))
	}
	_, _ = c.Write([]byte("last words\n"))
	got, err := os.ReadFile(c.path())
	if err != nil {
		t.Fatal(err)
	}
	if len(got) > maxConsole || !bytes.HasPrefix(got, []byte(cutMark)) || !bytes.HasSuffix(got, []byte("x\nlast words\n")) {
		t.Errorf("kept %d bytes, from %.40q", len(got), got)
	}
}
