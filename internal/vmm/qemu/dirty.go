package qemu

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/kilnvm/kiln/internal/artifact"
)

// A clone maps the file of its memory privately: pages that it has written are anonymous
// memory of its process, all others are the file's still. The kernel tells which is which
// (Documentation/admin-guide/mm/pagemap.rst), so that saving a clone's memory costs a copy
// of the file's data and the pages written since, whatever the size of the machine.
const (
	pagePresent = 1 << 63
	pageSwapped = 1 << 62
	pageOfFile  = 1 << 61
)

// mapping is a part of a file in the address space of a process.
type mapping struct {
	start, end uint64 // addresses
	offset     uint64 // in the file
}

// copyMemory writes the memory of a process that maps the file at path to dst, a new file.
// Nobody may write to that memory meanwhile.
func copyMemory(ctx context.Context, pid int, path, dst string) (err error) {
	maps, err := mappings(pid, path)
	if err != nil {
		return err
	}
	if len(maps) == 0 {
		return fmt.Errorf("process %d does not map %s", pid, path)
	}
	// By this name the file can be read even if it has lost its own.
	base := fmt.Sprintf("/proc/%d/map_files/%x-%x", pid, maps[0].start, maps[0].end)
	if err := artifact.CopySparse(ctx, dst, base); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(dst)
		}
	}()
	out, err := os.OpenFile(dst, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for _, m := range maps {
		if err = copyWritten(ctx, pid, m, out); err != nil {
			break
		}
	}
	return errors.Join(err, out.Close())
}

// mappings returns where a process maps the file at path.
func mappings(pid int, path string) ([]mapping, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var found []mapping
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// address perms offset dev inode, and the path behind spaces (proc_pid_maps(5))
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 {
			continue
		}
		_, name, _ := strings.Cut(lines.Text(), " /")
		if strings.TrimSuffix("/"+name, " (deleted)") != path {
			continue
		}
		m, err := parseMapping(fields[0], fields[2])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		found = append(found, m)
	}
	return found, lines.Err()
}

func parseMapping(addresses, offset string) (m mapping, err error) {
	from, to, _ := strings.Cut(addresses, "-")
	for text, value := range map[string]*uint64{from: &m.start, to: &m.end, offset: &m.offset} {
		if *value, err = strconv.ParseUint(text, 16, 64); err != nil {
			return m, err
		}
	}
	return m, nil
}

const (
	hostPage = 4096
	// pagesAtOnce bounds what is asked and copied at once: 4 MiB of memory.
	pagesAtOnce = 1024
)

// copyWritten copies the pages of a mapping that the process has written to.
func copyWritten(ctx context.Context, pid int, m mapping, out *os.File) error {
	table, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return err
	}
	defer table.Close()
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return err
	}
	defer memory.Close()
	entries, buffer := make([]byte, 8*pagesAtOnce), make([]byte, hostPage*pagesAtOnce)
	for at := m.start; at < m.end; at += hostPage * pagesAtOnce {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(pagesAtOnce, int((m.end-at)/hostPage))
		if _, err := table.ReadAt(entries[:8*n], int64(at/hostPage*8)); err != nil {
			return err
		}
		for from, to := range writtenRuns(entries[:8*n]) {
			b := buffer[:(to-from)*hostPage]
			if _, err := memory.ReadAt(b, int64(at)+int64(from)*hostPage); err != nil {
				return err
			}
			if _, err := out.WriteAt(b, int64(at-m.start+m.offset)+int64(from)*hostPage); err != nil {
				return err
			}
		}
	}
	return nil
}

// writtenRuns yields the runs [from, to) of pages that are the process's own.
func writtenRuns(entries []byte) func(yield func(from, to int) bool) {
	written := func(i int) bool {
		e := binary.NativeEndian.Uint64(entries[8*i:])
		return e&pageSwapped != 0 || e&pagePresent != 0 && e&pageOfFile == 0
	}
	n := len(entries) / 8
	return func(yield func(from, to int) bool) {
		for i := 0; i < n; i++ {
			if !written(i) {
				continue
			}
			from := i
			for i < n && written(i) {
				i++
			}
			if !yield(from, i) {
				return
			}
		}
	}
}
