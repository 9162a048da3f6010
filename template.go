package kiln

import (
	"regexp"
	"strconv"
	"strings"
	"time"
)

// VersionStatus is where a version is in its life.
type VersionStatus string

const (
	VersionPending  VersionStatus = "pending"
	VersionBuilding VersionStatus = "building"
	VersionReady    VersionStatus = "ready"
	VersionFailed   VersionStatus = "failed"
)

// versionTransitions is the whole state machine of a version. building → pending is
// the way back of a job whose server died.
var versionTransitions = map[VersionStatus][]VersionStatus{
	VersionPending:  {VersionBuilding, VersionFailed},
	VersionBuilding: {VersionReady, VersionFailed, VersionPending},
}

// CanBecome reports whether a version may go from s to next.
func (s VersionStatus) CanBecome(next VersionStatus) bool {
	for _, n := range versionTransitions[s] {
		if n == next {
			return true
		}
	}
	return false
}

// Terminal reports whether a version in this status never changes again.
func (s VersionStatus) Terminal() bool { return len(versionTransitions[s]) == 0 }

// Template is a named recipe.
type Template struct {
	ID          string    `json:"id"` // "tmpl_…"
	OrgID       string    `json:"-"`  // the owner; "" for built-in templates
	Name        string    `json:"name"`
	BuiltIn     bool      `json:"built_in"`
	Description string    `json:"description,omitempty"`
	Author      string    `json:"author,omitempty"`
	Icon        string    `json:"icon,omitempty"`
	Tags        []string  `json:"tags,omitempty"`
	CreatedAt   time.Time `json:"created_at"`
	UpdatedAt   time.Time `json:"updated_at"`
	// Current is the number of the promoted version, 0 before the first success.
	Current int `json:"version"`
	// Recipe is the number of the version that was asked for last. A rebuild starts from its
	// source.
	Recipe int `json:"-"`
	// Quota holds for all versions.
	Quota Quota `json:"quota,omitzero"`
	// Latest is the newest version, whatever became of it. nil only inside the store.
	Latest *Version `json:"latest,omitempty"`
	// Serving is the version that Current names, nil before the first success.
	Serving *Version `json:"-"`
}

// Status derives a template's status: ready while it has a ready version, else that of
// its newest version.
func (t *Template) Status() VersionStatus {
	if t.Current > 0 {
		return VersionReady
	}
	if t.Latest == nil {
		return VersionPending
	}
	return t.Latest.Status
}

// Version is one build of a template.
type Version struct {
	TemplateID string        `json:"template_id"`
	Number     int           `json:"number"` // 1, 2, 3 …
	BuildID    string        `json:"build_id"`
	Status     VersionStatus `json:"status"`
	CreatedAt  time.Time     `json:"created_at"`
	StartedAt  time.Time     `json:"started_at,omitzero"`
	EndedAt    time.Time     `json:"ended_at,omitzero"`
	// CollectedAt is when the version's files were given up because nothing referred to
	// them any more; zero while they are kept.
	CollectedAt time.Time `json:"collected_at,omitzero"`
	// BuildError is set when Status is failed.
	BuildError *BuildError `json:"build_error,omitempty"`
	// SourceBlob is the build context as an uploaded tar archive.
	SourceBlob   Digest        `json:"source_blob,omitempty"`
	SourceDigest Digest        `json:"source_digest,omitempty"`
	Options      BuildOptions  `json:"options"`
	Metadata     Metadata      `json:"metadata"` // file and flags merged
	Config       ImageConfig   `json:"config"`
	BaseImages   []BaseImage   `json:"base_images,omitempty"`
	Rootfs       Blob          `json:"rootfs,omitzero"`
	Stages       []StageResult `json:"stages,omitempty"`
}

// DefaultSize returns the size of a sandbox whose request names none.
func (v *Version) DefaultSize() string {
	if v.Metadata.DefaultSize != "" {
		return v.Metadata.DefaultSize
	}
	if v.Metadata.MinSize != "" {
		return v.Metadata.MinSize
	}
	return DefaultSizeName
}

// ScratchMB returns the size of the scratch disk in MiB.
func (v *Version) ScratchMB() int {
	if v.Metadata.DiskMB > 0 {
		return v.Metadata.DiskMB
	}
	return DefaultDiskMB
}

// MaxTemplateName is the longest template name in bytes.
const MaxTemplateName = 64

var templateName = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?$`)

// CheckTemplateName explains what is wrong with a template name, or returns nil.
func CheckTemplateName(name string) error {
	switch {
	case name == "":
		return Errorf(CodeInvalid, "template name is empty")
	case len(name) > MaxTemplateName:
		return Errorf(CodeInvalid, "template name %.20q… is longer than %d characters", name, MaxTemplateName)
	case strings.HasPrefix(name, TemplateIDPrefix):
		return Errorf(CodeInvalid, "template name %q begins like a template ID (%q)", name, TemplateIDPrefix)
	case name == "build" || name == "builds" || name == "capture": // routes of the API
		return Errorf(CodeInvalid, "template name %q is reserved", name)
	case !templateName.MatchString(name):
		return Errorf(CodeInvalid, "template name %q is not allowed", name).
			WithHint("use lower-case letters, digits, '-', '_' and '.', beginning and ending with a letter or digit")
	}
	return nil
}

// TemplateIDPrefix begins every template ID, and no template name.
const TemplateIDPrefix = "tmpl_"

// TemplateRef is a parsed reference: an ID or a name, optionally pinned to a version
// ("name@3") or a tag ("name:v1").
type TemplateRef struct {
	NameOrID string
	Version  int    // 0 when not pinned
	Tag      string // "" when not pinned
}

// ParseTemplateRef parses s.
func ParseTemplateRef(s string) (TemplateRef, error) {
	if name, num, ok := strings.Cut(s, "@"); ok {
		n, err := strconv.Atoi(num)
		if err != nil || n < 1 || name == "" {
			return TemplateRef{}, Errorf(CodeInvalid, "template %q: want name@N with N a version number from 1", s)
		}
		return TemplateRef{NameOrID: name, Version: n}, nil
	}
	if name, tag, ok := strings.Cut(s, ":"); ok {
		if name == "" || tag == "" {
			return TemplateRef{}, Errorf(CodeInvalid, "template %q: want name:tag", s)
		}
		return TemplateRef{NameOrID: name, Tag: tag}, nil
	}
	if s == "" {
		return TemplateRef{}, Errorf(CodeInvalid, "no template given")
	}
	return TemplateRef{NameOrID: s}, nil
}

// ParseWholeTemplate parses a reference for a command that concerns no single version, as
// why says. A pin would be a wish that is not obeyed, so it is refused.
func ParseWholeTemplate(s, command, why string) (nameOrID string, err error) {
	r, err := ParseTemplateRef(s)
	if err != nil {
		return "", err
	}
	if pin := r.Pin(); pin != "" {
		return "", Errorf(CodeInvalid, "template %q: %q has no meaning here, since %s", s, pin, why).
			WithHint("without it: kiln %s %s", command, r.NameOrID)
	}
	return r.NameOrID, nil
}

// Pin returns what pins the reference, "@3" or ":v1", or "".
func (r TemplateRef) Pin() string {
	switch {
	case r.Version > 0:
		return "@" + strconv.Itoa(r.Version)
	case r.Tag != "":
		return ":" + r.Tag
	}
	return ""
}

func (r TemplateRef) String() string { return r.NameOrID + r.Pin() }
