package kiln

// ImageConfig is the part of an OCI image configuration that decides how commands run
// in a sandbox. Field meanings are those of the OCI image specification's "config".
type ImageConfig struct {
	Env          []string          `json:"env,omitempty"` // KEY=value
	User         string            `json:"user,omitempty"`
	WorkingDir   string            `json:"working_dir,omitempty"`
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	ExposedPorts []string          `json:"exposed_ports,omitempty"` // "8080/tcp"
	Volumes      []string          `json:"volumes,omitempty"`       // folders that exist, whether or not the image has them
	Labels       map[string]string `json:"labels,omitempty"`
}

// Image is a built image: a root filesystem that can be read once it is there, and the
// configuration that goes with it. Close it when the entries have been read.
type Image struct {
	Config ImageConfig
	Root   EntrySource
}

// Close releases the root filesystem and whatever the build held for it.
func (i *Image) Close() error { return i.Root.Close() }

// BaseImage records which content a FROM line meant at the time of a build.
type BaseImage struct {
	Name   string `json:"name"`   // as the Dockerfile says it
	Digest Digest `json:"digest"` // of the manifest
	Origin string `json:"origin"` // "registry", "layout" or "bootstrap"
	// Chosen says that it was taken from [BuildOptions.Base].
	Chosen bool `json:"chosen,omitempty"`
}

// BuildOptions are the user's choices for the image stage.
type BuildOptions struct {
	Dockerfile string            `json:"dockerfile,omitempty"` // path inside the context; "" means "Dockerfile"
	Target     string            `json:"target,omitempty"`
	Args       map[string]string `json:"args,omitempty"`
	// Base lists what the build argument [BaseArg] may be, the preferred one first. It is
	// not used when Args sets that argument.
	Base []string `json:"base,omitempty"`
	// KeptBase is the member of Base that the version before was built on. It is taken
	// again if it is at hand, so that a rebuild does not depend on which registries
	// answer today; Pull lets the order of Base decide again.
	KeptBase string `json:"kept_base,omitempty"`
	NoCache  bool   `json:"no_cache,omitempty"`
	Pull     bool   `json:"pull,omitempty"` // ask for newer base images
	// Origin says where the context came from.
	Origin Origin `json:"origin,omitzero"`
	// Secrets maps the id of a RUN --mount=type=secret to its value. They are never
	// stored and never logged; their values are part of no key.
	Secrets map[string][]byte `json:"-"`
}

// Source is a fetched build context on the local disk.
type Source struct {
	Dir     string // the context directory
	OrgID   string // for whom it is built; "" for everybody
	Digest  Digest // over path, mode and content of what is not ignored
	Options BuildOptions
	// DisplayName is the Dockerfile as the user named it, for messages.
	DisplayName string
	Metadata    Metadata
	// Warnings are problems worth telling that do not stop the build.
	Warnings []string
}
