package pid1

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// disks are the device nodes of the VM's two disks. The order in which a kernel finds
// virtio devices depends on the VMM and on its bus, so they are told apart by what they
// are: the root filesystem is the disk that cannot be written.
type disks struct{ base, scratch string }

func awaitDisks(ctx context.Context, events *uevents) (disks, error) {
	ctx, cancel := context.WithTimeout(ctx, deviceTimeout)
	defer cancel()
	var d disks
	err := events.await(ctx, func() (bool, error) {
		var err error
		d, err = findDisks("/sys/block")
		return d.base != "" && d.scratch != "", err
	})
	if err != nil {
		return d, fmt.Errorf("disks of the VM: read-only %q, writable %q: %w", d.base, d.scratch, err)
	}
	return d, nil
}

// findDisks returns the first read-only and the first writable virtio disk.
func findDisks(sysBlock string) (disks, error) {
	var d disks
	dirs, err := filepath.Glob(filepath.Join(sysBlock, "vd*"))
	if err != nil {
		return d, err
	}
	sort.Strings(dirs)
	for _, dir := range dirs {
		ro, err := os.ReadFile(filepath.Join(dir, "ro"))
		if err != nil {
			return d, err
		}
		slot := &d.scratch
		if strings.TrimSpace(string(ro)) == "1" {
			slot = &d.base
		}
		if *slot == "" {
			*slot = "/dev/" + filepath.Base(dir)
		}
	}
	return d, nil
}
