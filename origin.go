package kiln

// Origin says where a build context came from, so that it can be had anew, and what the
// request said about it, so that a newer context's metadata file is read with the same
// flags over it. The zero value is an uploaded context.
type Origin struct {
	Git *GitSource `json:"git,omitempty"`
	// Image is an existing image that became the template without a Dockerfile.
	Image string `json:"image,omitempty"`
	// Capture is a sandbox whose file system became the template; the archive of it takes
	// the place of the build context.
	Capture *CaptureSource `json:"capture,omitempty"`
	// Args, Target and Metadata are those of the request alone.
	Args     map[string]string `json:"args,omitempty"`
	Target   string            `json:"target,omitempty"`
	Metadata Metadata          `json:"metadata,omitzero"`
}

// GitSource names a folder of a git repository at a commit.
type GitSource struct {
	// URL is https://, http:// or ssh://, without a password.
	URL string `json:"url"`
	// Ref is a branch, a tag or a commit; "" means the remote's HEAD.
	Ref string `json:"ref,omitempty"`
	// Dir is the context's folder, slash-separated; "" means the root of the repository.
	Dir string `json:"dir,omitempty"`
	// Commit is what Ref meant when the build was requested, in hexadecimal.
	Commit string `json:"commit,omitempty"`
}

// CaptureSource names the sandbox that a version was captured from and keeps what its file
// system does not tell.
type CaptureSource struct {
	Sandbox  string      `json:"sandbox"`
	Template string      `json:"template"` // that the sandbox was made from
	Version  int         `json:"version"`
	Config   ImageConfig `json:"config"`
}

// Digest returns the digest of the context: a commit names its content.
func (g GitSource) Digest() Digest {
	return NewKey(StageSource, 1).Add("git", g.URL).Add("commit", g.Commit).Add("dir", g.Dir).Key()
}

// GitCredentials open a private repository. They live as long as the request that
// brings them and are never stored, logged or part of a key.
type GitCredentials struct {
	Token      string `json:"token,omitempty"`       // for https, as the password
	SSHKey     string `json:"ssh_key,omitempty"`     // for ssh, a private key without passphrase
	KnownHosts string `json:"known_hosts,omitempty"` // for ssh, lines of a known_hosts file (sshd(8))
}
