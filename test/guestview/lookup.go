package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lookUp asks the kernel for the paths below dir that standard input names, one a line. It
// prints the nanoseconds that this took and the requests and sectors read from the device.
func lookUp(dir string, n int, device string) error {
	paths := make([]string, 0, n)
	lines := bufio.NewScanner(os.Stdin)
	for len(paths) < n && lines.Scan() {
		paths = append(paths, filepath.Join(dir, lines.Text()))
	}
	if len(paths) < n {
		return fmt.Errorf("standard input names %d paths instead of %d", len(paths), n)
	}
	before, err := readsOf(device)
	if err != nil {
		return err
	}
	start := time.Now()
	for _, path := range paths {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("look up %s: %w", path, err)
		}
	}
	took := time.Since(start)
	after, err := readsOf(device)
	if err != nil {
		return err
	}
	_, err = fmt.Println(took.Nanoseconds(), after.requests-before.requests, after.sectors-before.sectors)
	return err
}

// reads counts what was read from a block device: requests, and sectors of 512 bytes.
type reads struct{ requests, sectors int64 }

func readsOf(device string) (r reads, err error) {
	stat, err := os.ReadFile("/sys/class/block/" + filepath.Base(device) + "/stat")
	if err != nil {
		return r, err
	}
	var merged int64
	if _, err := fmt.Sscan(string(stat), &r.requests, &merged, &r.sectors); err != nil {
		return r, fmt.Errorf("statistics of %s: %w", device, err)
	}
	return r, nil
}
