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
	// DiskMB is the size of the writable scratch disk in MiB; 0 means [DefaultDiskMB].
	DiskMB int           `json:"disk_mb,omitempty"`
	Build  MetadataBuild `json:"build,omitzero"`
}

// MetadataBuild is the [build] table of a metadata file.
type MetadataBuild struct {
	Args   map[string]string `json:"args,omitempty"`
	Target string            `json:"target,omitempty"`
}

// DefaultDiskMB is the size of a scratch disk in MiB when the template names none.
const DefaultDiskMB = 1024
