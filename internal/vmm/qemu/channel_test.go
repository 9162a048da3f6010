package qemu

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
)

// What is chosen where nothing is configured is what works, and a channel that was asked for
// is never replaced by another.
func TestChannelIsChosen(t *testing.T) {
	if c, reason, err := ChooseChannel(Serial); c != Serial || reason == "" || err != nil {
		t.Errorf("serial: %q, %q, %v", c, reason, err)
	}
	if _, _, err := ChooseChannel("pigeon"); kiln.CodeOf(err) != kiln.CodeInvalid {
		t.Errorf("another: %v", err)
	}
	auto, reason, err := ChooseChannel("")
	if err != nil || reason == "" {
		t.Fatalf("%q, %v", reason, err)
	}
	asked, _, err := ChooseChannel(Vsock)
	if _, missing := os.Stat(vhostVsock); missing != nil {
		if auto != Serial || kiln.CodeOf(err) != kiln.CodeUnavailable {
			t.Errorf("without %s: %q, and vsock: %v", vhostVsock, auto, err)
		}
		return
	}
	if auto != Vsock || asked != Vsock || err != nil {
		t.Errorf("with %s: %q, and vsock: %q, %v", vhostVsock, auto, asked, err)
	}
	t.Run("numbers are reserved", reserveNumbers)
}

// reserveNumbers shows that a number is one VM's as long as its device is open.
func reserveNumbers(t *testing.T) {
	first, cid, err := reserveCID()
	if err != nil {
		t.Fatal(err)
	}
	second, other, err := reserveCID()
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if cid == other {
		t.Errorf("two VMs have the number %d", cid)
	}
	if err := setCID(second, cid); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a number that is taken was given again: %v", err)
	}
	if err := setCID(first, cid); err != nil {
		t.Errorf("QEMU cannot set the number that was reserved for it: %v", err)
	}
	first.Close()
	if err := setCID(second, cid); err != nil {
		t.Errorf("a number stays taken: %v", err)
	}
}
