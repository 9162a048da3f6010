package link

import (
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A port that attends reads what comes, goes to sleep when nothing comes, and blocks again
// afterwards.
func TestPortAttends(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	port, host := &Port{name: "test", fd: fds[0]}, os.NewFile(uintptr(fds[1]), "host")
	defer port.Close()
	defer host.Close()
	read := func() string {
		t.Helper()
		b := make([]byte, 16)
		n, err := port.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	write := func(s string) {
		if _, err := host.WriteString(s); err != nil {
			t.Error(err)
		}
	}

	if err := port.Attend(); err != nil {
		t.Fatal(err)
	}
	write("at once")
	if got := read(); got != "at once" {
		t.Errorf("an attentive port reads %q", got)
	}
	if err := port.Attend(); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(attentionSpan+attentionSpan/2, func() { write("later") })
	if got := read(); got != "later" {
		t.Errorf("a port that has gone to sleep reads %q", got)
	}
	flags, err := unix.FcntlInt(uintptr(port.fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("flags of a port that sleeps: %#x, %v", flags, err)
	}
	if err := port.Attend(); err != nil {
		t.Fatal(err)
	}
	full := make([]byte, 1<<20) // more than the socket holds
	received := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(host, make([]byte, len(full)))
		received <- err
	}()
	if n, err := port.Write(full); n != len(full) || err != nil {
		t.Errorf("an attentive port writes %d bytes, %v", n, err)
	}
	if err := <-received; err != nil {
		t.Error(err)
	}
}
