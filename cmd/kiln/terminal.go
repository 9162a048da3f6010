package main

import (
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
)

// forwarded returns what a command in a sandbox reads from. A kiln in the background of a
// terminal must not read from it: the kernel would stop it.
func forwarded(stdin io.Reader) io.Reader {
	file, ok := stdin.(*os.File)
	if !ok {
		return stdin
	}
	if group, err := unix.IoctlGetInt(int(file.Fd()), unix.TIOCGPGRP); err == nil && group != unix.Getpgrp() {
		return nil
	}
	return stdin
}

func errNoTerminal() error {
	return usageError{kiln.Errorf(kiln.CodeInvalid, "standard input is not a terminal")}
}

// terminal makes cmd run in a terminal that is this process's. restore gives ours back.
func (a *app) terminal(cmd *guest.Command) (restore func(), err error) {
	in, ok := a.stdin.(*os.File)
	if !ok {
		return nil, errNoTerminal()
	}
	fd := int(in.Fd())
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, errNoTerminal()
	}
	if err := setRaw(fd, *old); err != nil {
		return nil, err
	}
	sizes, stop := watchSize(fd)
	cmd.TTY = &guest.TTY{Size: terminalSize(fd), Resize: sizes}
	return func() {
		stop()
		_ = unix.IoctlSetTermios(fd, unix.TCSETS, old) // there is nothing to do about it
	}, nil
}

// setRaw passes every key on as it is, as cfmakeraw(3) does.
func setRaw(fd int, raw unix.Termios) error {
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	return unix.IoctlSetTermios(fd, unix.TCSETS, &raw)
}

// watchSize sends the terminal's size whenever it changes, until stop is called.
func watchSize(fd int) (_ <-chan guest.TTYSize, stop func()) {
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	sizes, stopped := make(chan guest.TTYSize), make(chan struct{})
	go func() {
		for {
			select {
			case <-resized:
			case <-stopped:
				return
			}
			select {
			case sizes <- terminalSize(fd):
			case <-stopped:
				return
			}
		}
	}()
	return sizes, func() {
		signal.Stop(resized)
		close(stopped)
	}
}

// isTerminal reports whether what is written to w is shown on a terminal.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

func terminalSize(fd int) guest.TTYSize {
	size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 {
		return guest.TTYSize{Cols: 80, Rows: 24}
	}
	return guest.TTYSize{Cols: size.Col, Rows: size.Row}
}
