package extsort

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"os"
)

// Log keeps records in the order in which they are added. It is not safe for concurrent
// use.
type Log struct {
	dir   string
	limit int
	buf   []byte
	file  *os.File
	size  int64
}

// NewLog returns an empty log that holds about limit bytes in memory and puts what goes
// beyond into a temporary file in dir ("" means the system's).
func NewLog(dir string, limit int) *Log { return &Log{dir: dir, limit: max(limit, 1<<12)} }

// Add takes a copy of value.
func (l *Log) Add(value []byte) error {
	if len(l.buf)+len(value) > l.limit && len(l.buf) > 0 {
		if err := l.flush(); err != nil {
			return err
		}
	}
	l.buf = binary.AppendUvarint(l.buf, 0)
	l.buf = binary.AppendUvarint(l.buf, uint64(len(value)))
	l.buf = append(l.buf, value...)
	return nil
}

func (l *Log) flush() error {
	if l.file == nil {
		f, err := tempFile(l.dir)
		if err != nil {
			return err
		}
		l.file = f
	}
	if _, err := l.file.WriteAt(l.buf, l.size); err != nil {
		return fmt.Errorf("spill: %w", err)
	}
	l.size += int64(len(l.buf))
	l.buf = l.buf[:0]
	return nil
}

// All starts an iteration over all records; their keys are empty. Nothing may be added
// during it.
func (l *Log) All() *Iterator {
	if l.file == nil {
		rest := l.buf
		return &Iterator{next: func(it *Iterator) bool {
			if len(rest) == 0 {
				return false
			}
			n, w := binary.Uvarint(rest[1:])
			it.Value = rest[1+w : 1+w+int(n)]
			rest = rest[1+w+int(n):]
			return true
		}}
	}
	if len(l.buf) > 0 {
		if err := l.flush(); err != nil {
			return &Iterator{err: err}
		}
	}
	c := &cursor{r: bufio.NewReaderSize(io.NewSectionReader(l.file, 0, l.size), 256<<10)}
	return &Iterator{next: func(it *Iterator) bool {
		ok, err := c.next()
		it.Value, it.err = c.val, err
		return ok
	}}
}

// Close releases memory and the temporary file.
func (l *Log) Close() error {
	l.buf = nil
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

// tempFile returns a file that has no name any more, so that it vanishes with its
// descriptor whatever becomes of this process.
func tempFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "kiln-sort-*")
	if err != nil {
		return nil, fmt.Errorf("spill: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("spill: %w", err)
	}
	return f, nil
}

func writeRecord(w *bufio.Writer, key, val []byte) (int64, error) {
	var b [2 * binary.MaxVarintLen64]byte
	h := binary.AppendUvarint(binary.AppendUvarint(b[:0], uint64(len(key))), uint64(len(val)))
	w.Write(h)
	w.Write(key)
	_, err := w.Write(val) // a bufio.Writer keeps its first error
	return int64(len(h) + len(key) + len(val)), err
}

// readRecord reads one record into buf, which grows as needed. It returns io.EOF at the
// end.
func readRecord(r *bufio.Reader, buf []byte) (key, val, grown []byte, err error) {
	k, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, nil, buf, err
	}
	v, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, nil, buf, io.ErrUnexpectedEOF
	}
	n := int(k + v)
	if cap(buf) < n {
		buf = make([]byte, n, n+n/2)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		return nil, nil, buf, io.ErrUnexpectedEOF
	}
	return buf[:k], buf[k:], buf, nil
}
