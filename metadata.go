package kiln

// MetadataFiles are the names under which a source may carry [Metadata], in the order
// in which they are looked for.
func MetadataFiles() []string { return []string{"kiln-template.toml", "zwrm-template.toml"} }

// Metadata is what a source says about its template. Reading and validation is the
// source package's.
type Metadata struct {
	Name        string            `json:"name,omitempty"`
	Description string            `json:"description,omitempty"`
	Author      string            `json:"author,omitempty"`
	Icon        string            `json:"icon,omitempty"`
	Tags        []string          `json:"tags,omitempty"`
	DefaultSize string            `json:"default_size,omitempty"`
	MinSize     string            `json:"min_size,omitempty"`
	Env         map[string]string `json:"env,omitempty"`
	// StartCmd is a shell command started once before the snapshot and left running.
	StartCmd string `json:"start_cmd,omitempty"`
	// ReadyCmd is a shell command repeated until it exits 0; then the VM is captured.
	ReadyCmd string `json:"ready_cmd,omitempty"`
	// PostRestore is a shell command that is run in every restored clone, with its new
	// identity in place, before the sandbox is handed out.
	PostRestore string `json:"post_restore,omitempty"`
	// Init is what runs as process 1: "" for Kiln's daemon, [InitSystemd] for the
	// image's own systemd with the daemon as one of its services.
	Init string `json:"init,omitempty"`
	// Smoke is a shell command that succeeds in a sandbox if the template is good.
	Smoke string `json:"smoke,omitempty"`
	// DiskMB is the size of the writable scratch disk in MiB; 0 means [DefaultDiskMB].
	DiskMB int           `json:"disk_mb,omitempty"`
	Build  MetadataBuild `json:"build,omitzero"`
	// Egress is what sandboxes may reach unless they say otherwise.
	Egress EgressPolicy `json:"egress,omitzero"`
	// Limits bound the disk traffic of each sandbox.
	Limits DiskLimits `json:"limits,omitzero"`
}

// MetadataBuild is the [build] table of a metadata file.
type MetadataBuild struct {
	// Base lists base images in order of preference. The first that can be had is the
	// value of the build argument [BaseArg].
	Base   []string          `json:"base,omitempty"`
	Args   map[string]string `json:"args,omitempty"`
	Target string            `json:"target,omitempty"`
}

// BaseArg is the build argument that stands for the chosen base image: "ARG BASE" before
// the first FROM, then "FROM ${BASE}".
const BaseArg = "BASE"

// InitSystemd is the value of [Metadata.Init] for templates that boot their own systemd.
const InitSystemd = "systemd"

// MaxDiskMB is the largest scratch disk in MiB: 1 TiB.
const MaxDiskMB = 1 << 20

// DefaultDiskMB is the size of a scratch disk in MiB when the template names none.
const DefaultDiskMB = 1024
