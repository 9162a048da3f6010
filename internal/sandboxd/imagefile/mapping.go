package imagefile

import (
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// A Mapping changes the content of a file, not its length, without a system call: the page
// that holds it is in memory and belongs to the writer. nil is a mapping of nothing.
type Mapping struct{ content []byte }

// Map returns a mapping of a regular file that [Write] has written.
func Map(path string) (*Mapping, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() == 0 || info.Size() > MaxSize {
		return nil, unusable(path, "cannot be mapped")
	}
	content, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, &os.PathError{Op: "mmap", Path: path, Err: err}
	}
	m := &Mapping{content: content}
	m.store(string(content)) // the first write is the one that costs
	return m, nil
}

// Replace replaces the end of the file, or all of it, and reports whether it could: the
// file must be as long as text, at least, and nobody may have cut it off meanwhile.
func (m *Mapping) Replace(text string) bool {
	if m == nil || len(text) > len(m.content) {
		return false
	}
	return m.store(text)
}

func (m *Mapping) store(text string) (ok bool) {
	// Beyond the end of a file that was cut off there is no memory.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { ok = recover() == nil }()
	copy(m.content[len(m.content)-len(text):], text)
	return true
}
