package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/hostcmd"
)

func checkRoot(context.Context, Options) Check {
	c := Check{Name: "root", Status: OK, Detail: "running as root"}
	if uid := os.Geteuid(); uid != 0 {
		c.Status, c.Detail = Fail, fmt.Sprintf("running as user %d; builds need mounts and namespaces", uid)
		c.Fix = "sudo kiln doctor"
	}
	return c
}

func checkQEMU(ctx context.Context, o Options) Check {
	line, err := firstLine(ctx, o.QEMU, "--version")
	if err != nil {
		return failure("qemu", Fail, err, "apt-get install qemu-system-x86 seabios")
	}
	return Check{Name: "qemu", Status: OK, Detail: line}
}

func checkAcceleration(ctx context.Context, o Options) Check {
	accel, reason, err := o.Accelerator(ctx)
	switch {
	case err != nil:
		return failure("boot probe", Fail, err, "apt-get install qemu-system-x86 seabios")
	case accel != "kvm":
		return Check{Name: "boot probe", Status: Warn, Detail: "software emulation: " + reason,
			Fix: "use a host with KVM for untrusted code at full speed"}
	}
	return Check{Name: "boot probe", Status: OK, Detail: "a guest booted on KVM"}
}

func checkChannel(_ context.Context, o Options) Check {
	const name = "guest channel"
	channel, reason, err := o.Channel()
	if err != nil {
		return failure(name, Fail, err, "modprobe vhost_vsock, or set vm.channel in the configuration to serial")
	}
	return Check{Name: name, Status: OK, Detail: channel + ": " + reason}
}

func checkKernel(ctx context.Context, o Options) Check {
	const name = "guest kernel"
	if o.Kernel != "" {
		info, err := os.Stat(o.Kernel)
		if err == nil && !info.Mode().IsRegular() {
			err = errors.New(o.Kernel + " is not a regular file")
		}
		if err != nil {
			return failure(name, Fail, err, "set vm.kernel in the configuration to a guest kernel")
		}
		return Check{Name: name, Status: OK, Detail: o.Kernel}
	}
	out, err := hostcmd.Output(ctx, "apt-cache", "policy", "linux-image-cloud-amd64")
	if err != nil {
		return failure(name, Fail, err, "set vm.kernel in the configuration to a guest kernel")
	}
	for line := range strings.Lines(string(out)) {
		if version, ok := strings.CutPrefix(strings.TrimSpace(line), "Candidate: "); ok && version != "(none)" {
			return Check{Name: name, Status: OK, Detail: "linux-image-cloud-amd64 " + version}
		}
	}
	// A warning, since a kernel that was fetched before goes on serving.
	return Check{Name: name, Status: Warn, Detail: "apt's lists offer no linux-image-cloud-amd64",
		Fix: "apt-get update"}
}

func checkBuilder(ctx context.Context, o Options) Check {
	if o.Builder != "" {
		return Check{Name: "builder", Status: OK, Detail: "configured: " + o.Builder}
	}
	line, err := firstLine(ctx, "runc", "--version")
	if err != nil {
		return failure("builder", Fail, err, "apt-get install runc")
	}
	return Check{Name: "builder", Status: OK, Detail: line}
}

// checkOverlay mounts an overlay in a mount namespace that ends with the command.
func checkOverlay(ctx context.Context, o Options) Check {
	const name = "overlayfs"
	dir, err := os.MkdirTemp(existingParent(o.DataDir), ".kiln-doctor-")
	if err != nil {
		return failure(name, Fail, err, "choose another --data-dir")
	}
	defer os.RemoveAll(dir)
	for _, sub := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			return failure(name, Fail, err, "")
		}
	}
	err = hostcmd.Command{
		Name: "unshare",
		Args: []string{"--mount", "mount", "-t", "overlay", "overlay",
			"-o", "lowerdir=lower,upperdir=upper,workdir=work", "merged"},
		Dir: dir,
	}.Run(ctx)
	if err != nil {
		return failure(name, Fail, err, "modprobe overlay, or choose a --data-dir on ext4 or xfs")
	}
	return Check{Name: name, Status: OK, Detail: "an overlay was mounted beside " + o.DataDir}
}

func checkBootstrap(ctx context.Context, _ Options) Check {
	line, err := firstLine(ctx, "mmdebstrap", "--version")
	if err != nil {
		c := failure("base images without a registry", Warn, err, "apt-get install mmdebstrap")
		return c
	}
	return Check{Name: "base images without a registry", Status: OK, Detail: line}
}

func checkScratch(ctx context.Context, _ Options) Check {
	// mke2fs prints its version on standard error.
	err := hostcmd.Run(ctx, "mke2fs", "-V")
	if err != nil {
		return failure("mke2fs", Fail, err, "apt-get install e2fsprogs")
	}
	return Check{Name: "mke2fs", Status: OK, Detail: "scratch disks can be made"}
}

func checkDataDir(_ context.Context, o Options) Check {
	const name = "data directory"
	parent := existingParent(o.DataDir)
	f, err := os.CreateTemp(parent, ".kiln-doctor-")
	if err != nil {
		return failure(name, Fail, err, "choose another --data-dir")
	}
	f.Close()
	os.Remove(f.Name())
	if parent != filepath.Clean(o.DataDir) {
		return Check{Name: name, Status: OK, Detail: o.DataDir + " can be created"}
	}
	return Check{Name: name, Status: OK, Detail: o.DataDir + " is writable"}
}

// lowSpace is the free space in bytes below which a few builds fill the disk.
const lowSpace = 10 << 30

func checkSpace(_ context.Context, o Options) Check {
	const name = "disk space"
	var st unix.Statfs_t
	if err := unix.Statfs(existingParent(o.DataDir), &st); err != nil {
		return failure(name, Fail, fmt.Errorf("%s: %w", o.DataDir, err), "")
	}
	free := int64(st.Bavail) * st.Bsize
	c := Check{Name: name, Status: OK, Detail: fmt.Sprintf("%.1f GiB free", float64(free)/(1<<30))}
	if free < lowSpace {
		c.Status, c.Fix = Warn, "free some space, or choose a --data-dir on a larger disk"
	}
	return c
}

func checkNetwork(o Options) []Check {
	if o.Network == nil {
		return []Check{{Name: "network", Status: OK, Detail: "switched off: network.enabled in the configuration"}}
	}
	var list []Check
	for _, f := range o.Network() {
		switch {
		case f.Err == nil:
			list = append(list, Check{Name: f.Name, Status: OK, Detail: f.Detail})
		case f.Minor:
			list = append(list, failure(f.Name, Warn, f.Err, f.Fix))
		default:
			list = append(list, failure(f.Name, Fail, f.Err, f.Fix))
		}
	}
	return list
}

// existingParent returns dir or its nearest ancestor that exists.
func existingParent(dir string) string {
	for {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			return filepath.Clean(dir)
		}
		dir = filepath.Dir(filepath.Clean(dir))
	}
}

func firstLine(ctx context.Context, name string, args ...string) (string, error) {
	out, err := hostcmd.Output(ctx, name, args...)
	line, _, _ := bytes.Cut(out, []byte("\n"))
	return string(line), err
}
