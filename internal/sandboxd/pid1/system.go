package pid1

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/sandboxd/imagefile"
)

// bootHostname is the name of a VM that has no identity yet.
const bootHostname = "sandbox"

// setUpSystem prepares the root filesystem for programs. Each step is worth having and
// none is worth losing the VM for: a failure is logged.
//
// /run and /tmp stay on the root filesystem, where the image's own files in them are
// seen and where they do not use up memory.
func setUpSystem(log *slog.Logger) {
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"mounts", mountSystem},
		{"device links", linkDevices},
		{"/run", func() error { return ensureDir("/run", 0o755) }},
		{"/tmp", func() error { return ensureDir("/tmp", 0o777|fs.ModeSticky) }},
		{"loopback", raiseLoopback},
		{"network", func() error { return setUpNetwork(log) }},
		{"host name", func() error { return unix.Sethostname([]byte(bootHostname)) }},
		{"/etc/hosts", writeHosts},
		{"quiet kernel", quietenKernel},
	} {
		if err := step.do(); err != nil {
			log.Warn("system set-up", "step", step.name, "error", err)
		}
	}
}

// mountSystem mounts the pseudo file systems that live inside /dev and /sys.
func mountSystem() error {
	const quiet = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV
	var errs []error
	for _, m := range []mount{
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"},
		{"shm", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"mqueue", "/dev/mqueue", "mqueue", quiet, ""},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", quiet, "nsdelegate"},
	} {
		if strings.HasPrefix(m.target, "/dev/") { // sysfs makes its mount points itself
			if err := ensureDir(m.target, 0o755); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		errs = append(errs, m.do())
	}
	return errors.Join(errs...)
}

// quietenKernel stops housekeeping that wakes an idle kernel and is of no use in a small VM
// with the host's page cache below its disks. Each clone would begin with whatever is due.
func quietenKernel() error {
	settings := map[string]string{
		"/proc/sys/vm/stat_interval":            "60", // seconds between updates of /proc/vmstat, 1 by default
		"/proc/sys/vm/compaction_proactiveness": "0",  // no compaction of memory ahead of need
	}
	disks, err := filepath.Glob("/sys/block/*/queue/wbt_lat_usec")
	for _, disk := range disks {
		settings[disk] = "0" // no throttling of writeback: the latency that it measures is the host's
	}
	for path, value := range settings {
		if werr := os.WriteFile(path, []byte(value), 0); werr != nil && !errors.Is(werr, fs.ErrNotExist) {
			err = errors.Join(err, werr)
		}
	}
	return err
}

// linkDevices makes the names that shells and programs expect in /dev beside the kernel's.
func linkDevices() error {
	var errs []error
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
		"stderr": "/proc/self/fd/2", "core": "/proc/kcore",
	} {
		if err := os.Symlink(target, filepath.Join("/dev", name)); err != nil && !errors.Is(err, fs.ErrExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// raiseLoopback brings up the lo interface; the kernel gives it 127.0.0.1 and ::1.
func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// writeHosts gives the VM a hosts file unless the image brought one that says something:
// builders leave it empty, because they mount their own over it.
func writeHosts() error {
	const path = "/etc/hosts"
	content, err := imagefile.Read(path)
	if err == nil && strings.TrimSpace(string(content)) != "" {
		return nil
	}
	hosts := fmt.Sprintf("127.0.0.1\tlocalhost\n127.0.1.1\t%s\n::1\tlocalhost ip6-localhost ip6-loopback\n", bootHostname)
	return imagefile.Write(path, []byte(hosts), 0o644)
}
