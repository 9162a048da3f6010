package qemu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/testkit"
	"github.com/kilnvm/kiln/internal/vmm"
	"github.com/kilnvm/kiln/internal/vmm/vmmtest"
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

// A machine is captured while no interrupt waits for it, and its timer's is put off: a clone
// first of all does what it is asked.
func TestCloneBeginsWithoutInterrupt(t *testing.T) {
	testkit.RequireVM(t)
	d, err := New(t.Context(), Options{Accel: TCG})
	if err != nil {
		t.Fatal(err)
	}
	dir := testkit.ShortTempDir(t)
	m, client, end := vmmtest.Boot(t.Context(), t, d, vmm.Config{
		ID: "tick", Dir: dir, Boot: testkit.BootBundle(t), Size: kiln.Sizes()[0], Memory: filepath.Join(dir, "memory"),
		Rootfs: testkit.MinimalRootfs(t), Scratch: testkit.ScratchDisk(t, 64),
	})
	defer end()
	if err := client.Quiesce(t.Context()); err != nil {
		t.Fatal(err)
	}
	client.Close()
	state := vmm.State{Memory: filepath.Join(dir, "memory"), State: filepath.Join(dir, "state")}
	if err := m.Capture(t.Context(), state); err != nil {
		t.Fatal(err)
	}
	stream, err := readState(state.State)
	if err != nil {
		t.Fatal(err)
	}
	field := func(device, name string, size int) []byte {
		t.Helper()
		all, err := fieldsOf(stream, device, name, size)
		if err != nil || len(all) != 1 {
			t.Fatalf("%d fields %s of %s, %v", len(all), name, device, err)
		}
		return all[0]
	}
	for _, requests := range []string{"irr", "isr"} {
		if b := field("apic", requests, 32); !bytes.Equal(b, make([]byte, 32)) {
			t.Errorf("%s: % x", requests, b)
		}
	}
	now := binary.BigEndian.Uint64(field("timer", "cpu_clock_offset", 8))
	expiry := binary.BigEndian.Uint64(field("apic", "timer_expiry", 8))
	if wait := time.Duration(expiry - now); wait < tickDelay || wait > tickDelay+time.Second {
		t.Errorf("the first interrupt comes after %v, want %v and a little", wait, tickDelay)
	}
}

func TestFieldsOfRefuses(t *testing.T) {
	for name, stream := range map[string]string{
		"empty": "", "no devices": streamMagic + "\x04", "no description": streamMagic + "\x04{}",
		"bad description": streamMagic + "\x04\x06\x00\x00\x00\x01{",
		"another device":  streamMagic + "\x04\x00\x00\x00\x01\x01a\x00\x00\x00\x00\x00\x00\x00\x01\x7e\x00\x00\x00\x01\x06\x00\x00\x00\x1c" + `{"devices":[{"name":"bcd"}]}`,
	} {
		if _, err := fieldsOf([]byte(stream), "a", "b", 1); !errors.Is(err, errStream) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
