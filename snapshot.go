package kiln

import (
	"strconv"
	"time"
)

// Blob names an immutable file.
type Blob struct {
	Digest Digest `json:"digest"`
	Size   int64  `json:"size"` // apparent size in bytes
	Role   string `json:"role"` // "rootfs", "memory", "vmstate", "scratch", "kernel", "initrd", "source"
}

// Roles of blobs.
const (
	RoleRootfs  = "rootfs"
	RoleMemory  = "memory"
	RoleVMState = "vmstate"
	RoleScratch = "scratch"
	RoleKernel  = "kernel"
	RoleInitrd  = "initrd"
	RoleSource  = "source"
)

// BootBundle is what a VM boots: a guest kernel and an initramfs whose /init is
// kiln-sandboxd. The daemon is never part of a root filesystem.
type BootBundle struct {
	KernelPath    string // ELF vmlinux or bzImage
	InitrdPath    string
	KernelVersion string
	Digest        Digest // over both files
}

// VMSpec is what the VMs of one version at one size are made of, whether they boot cold
// or are restored.
type VMSpec struct {
	Rootfs    Blob
	Size      Size
	Config    ImageConfig
	Env       map[string]string // the template's, over Config.Env
	StartCmd  string
	ReadyCmd  string
	ScratchMB int
	// Egress is what the VM may reach while it gets ready to be captured.
	Egress EgressPolicy
	// PostRestore runs in every clone before it is handed out; no snapshot depends on it.
	PostRestore string
	Init        string     // see Metadata.Init
	Disk        DiskLimits // not part of a snapshot: they hold from the moment a VM starts
}

// VMSpec returns what a VM of version v at the given size is made of.
func (v *Version) VMSpec(size Size) VMSpec {
	return VMSpec{
		Rootfs: v.Rootfs, Size: size, Config: v.Config, Env: v.Metadata.Env,
		StartCmd: v.Metadata.StartCmd, ReadyCmd: v.Metadata.ReadyCmd, ScratchMB: v.ScratchMB(),
		Egress:      v.Metadata.Egress,
		PostRestore: v.Metadata.PostRestore,
		Init:        v.Metadata.Init, Disk: v.Metadata.Limits,
	}
}

// SnapshotKey lists everything that a golden snapshot depends on. A snapshot is used
// only where the key computed there equals the key it was stored under.
type SnapshotKey struct {
	VMSpec
	BootBundle     Digest
	VMM            string // driver name and version, "qemu-tcg 7.2.22"
	CPUFingerprint string
	Network        bool // the VM has a network device
}

// Snapshot is the saved VM of one version at one size.
type Snapshot struct {
	Key       Digest    `json:"key"`
	SizeName  string    `json:"size"`
	Memory    Blob      `json:"memory"`
	VMState   Blob      `json:"vmstate"`
	Scratch   Blob      `json:"scratch"`
	Rootfs    Blob      `json:"rootfs"`
	CreatedAt time.Time `json:"created_at"`
}

// Digest returns the key under which such a snapshot is stored.
func (k SnapshotKey) Digest() Digest {
	return NewKey(StageSnapshot, 1).
		Add("rootfs", string(k.Rootfs.Digest)).
		Add("boot-bundle", string(k.BootBundle)).
		Add("size", k.Size.Name).
		Add("vcpus", strconv.Itoa(k.Size.VCPUs)).
		Add("memory-mib", strconv.Itoa(k.Size.MemoryMiB)).
		Add("vmm", k.VMM).
		Add("cpu", k.CPUFingerprint).
		Add("start-cmd", k.StartCmd).
		Add("ready-cmd", k.ReadyCmd).
		AddList("env", k.Config.Env).
		Add("user", k.Config.User).
		Add("working-dir", k.Config.WorkingDir).
		AddList("volumes", k.Config.Volumes).
		AddMap("template-env", k.Env).
		Add("scratch-mb", strconv.Itoa(k.ScratchMB)).
		Add("init", k.Init).
		Add("network", strconv.FormatBool(k.Network)).
		Add("egress", k.Egress.key()).
		Key()
}
