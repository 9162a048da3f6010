package sandboxd

import "time"

// System carries out what affects the whole machine. [Linux] is the one for a guest.
type System interface {
	// Prepare makes ready what the methods below need, so that a clone has less left to do.
	// It is called before a capture.
	Prepare() error
	// AddEntropy credits b to the kernel's random number generator and makes it derive its
	// state anew, so that nothing generated later can equal another clone's.
	AddEntropy(b []byte) error
	// SetClock steps the wall clock.
	SetClock(t time.Time) error
	SetHostname(name string) error
	// SetBootID replaces what the kernel shows as the ID of this boot.
	SetBootID(id string) error
	// Reload makes the process whose number stands in pidFile read its configuration again
	// (SIGHUP), if its program is called command. A missing file is no error.
	Reload(pidFile, command string) error
	// Connections lists the TCP connections that would be broken in a clone, for people:
	// those whose other end is outside this machine.
	Connections() ([]string, error)
	// Sync writes all changed data to the disks.
	Sync()
	// DropCaches frees memory that holds nothing but copies of clean data.
	DropCaches() error
}
