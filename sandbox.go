package kiln

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/base64"
	"strconv"
	"strings"
	"time"
)

// SandboxStatus is where a sandbox is in its life.
type SandboxStatus string

const (
	SandboxCreating SandboxStatus = "creating"
	SandboxRunning  SandboxStatus = "running"
	SandboxPausing  SandboxStatus = "pausing" // its VM is being saved
	SandboxPaused   SandboxStatus = "paused"  // saved in its folder; no process, no memory
	SandboxWaking   SandboxStatus = "waking"  // being restored from what was saved
	SandboxStopping SandboxStatus = "stopping"
	SandboxDeleted  SandboxStatus = "deleted"
	SandboxFailed   SandboxStatus = "failed"
)

var sandboxTransitions = map[SandboxStatus][]SandboxStatus{
	SandboxCreating: {SandboxRunning, SandboxFailed, SandboxStopping},
	SandboxRunning:  {SandboxPausing, SandboxStopping, SandboxFailed},
	SandboxPausing:  {SandboxPaused, SandboxRunning, SandboxStopping, SandboxFailed},
	SandboxPaused:   {SandboxWaking, SandboxStopping, SandboxFailed},
	SandboxWaking:   {SandboxRunning, SandboxPaused, SandboxStopping, SandboxFailed},
	SandboxStopping: {SandboxDeleted, SandboxFailed},
	SandboxFailed:   {SandboxStopping, SandboxDeleted},
}

// CanBecome reports whether a sandbox may go from s to next.
func (s SandboxStatus) CanBecome(next SandboxStatus) bool {
	for _, n := range sandboxTransitions[s] {
		if n == next {
			return true
		}
	}
	return false
}

// BootMode says how a sandbox came to life.
type BootMode string

const (
	BootWarm     BootMode = "warm"
	BootSnapshot BootMode = "snapshot"
	BootCold     BootMode = "cold"
	// BootSpawned is only ever asked for: BootSnapshot by a VMM that was started ahead.
	BootSpawned BootMode = "spawned"
)

// ParseBootMode checks the name of a start path; "" is none in particular.
func ParseBootMode(name string) (BootMode, error) {
	switch m := BootMode(name); m {
	case "", BootWarm, BootSpawned, BootSnapshot, BootCold:
		return m, nil
	}
	return "", Errorf(CodeInvalid, "boot mode %q is unknown", name).WithHint("use %s, %s, %s or %s", BootWarm, BootSpawned, BootSnapshot, BootCold)
}

// Sandbox is a running private clone of a template version.
type Sandbox struct {
	ID         string        `json:"id"`
	OrgID      string        `json:"-"`
	TemplateID string        `json:"template_id"`
	Template   string        `json:"template"` // its name
	Version    int           `json:"version"`
	Size       string        `json:"size"`
	VCPUs      int           `json:"cpu"`
	MemoryMiB  int           `json:"memory_mb"`
	DiskMB     int           `json:"disk_mb"`
	Status     SandboxStatus `json:"status"`
	Reason     string        `json:"reason,omitempty"` // why it failed or ended
	BootMode   BootMode      `json:"boot_mode,omitempty"`
	// BootTime runs from the request to the first successful answer of the daemon.
	BootTime  time.Duration     `json:"-"`
	Metadata  map[string]string `json:"metadata,omitempty"`
	Env       map[string]string `json:"-"`
	Parent    string            `json:"parent_id,omitempty"` // the sandbox that it was forked from
	CreatedAt time.Time         `json:"created_at"`
	ExpiresAt time.Time         `json:"expires_at,omitzero"` // zero while it is paused: its time stands still
	PausedAt  time.Time         `json:"paused_at,omitzero"`
	EndedAt   time.Time         `json:"ended_at,omitzero"`
	// TTL is the life that was asked for last; it begins anew when the sandbox wakes.
	TTL time.Duration `json:"-"`
	// Persistent sandboxes are paused, not ended, when they expire or have been idle.
	Persistent bool `json:"persistent,omitempty"`
	// IdleTimeout is how long nobody may use the sandbox before it is paused, if it is
	// persistent, or ended; 0 means for ever.
	IdleTimeout time.Duration `json:"-"`
	// Egress is what the sandbox may reach, its template's and the cluster's settings
	// included. It is empty on a server without a network.
	Egress EgressPolicy `json:"egress,omitzero"`
	// Network is what passed until the sandbox was paused last or ended; of one that runs,
	// whoever asks for it alone is told what has passed by now.
	Network NetworkUse `json:"network,omitzero"`
	// AccessToken is what the guest daemon asks for in X-Access-Token.
	AccessToken string `json:"-"`
	// Process is the VMM, recorded so that a restarted server can end it.
	Process Process `json:"-"`
}

// Process names one process of this host for ever: a PID alone is reused.
type Process struct {
	PID       int    // 0 when there is none
	StartTime uint64 // field 22 of /proc/PID/stat: clock ticks since the host booted
}

// Living reports whether a sandbox in this status still holds resources.
func (s SandboxStatus) Living() bool {
	return s != SandboxDeleted && s != SandboxFailed
}

// SandboxStatuses returns every status, in the order of a life.
func SandboxStatuses() []SandboxStatus {
	return []SandboxStatus{SandboxCreating, SandboxRunning, SandboxPausing, SandboxPaused, SandboxWaking,
		SandboxStopping, SandboxDeleted, SandboxFailed}
}

// ParseSandboxStatus checks the name of a status.
func ParseSandboxStatus(name string) (SandboxStatus, error) {
	var names []string
	for _, s := range SandboxStatuses() {
		if string(s) == name {
			return s, nil
		}
		names = append(names, string(s))
	}
	return "", Errorf(CodeInvalid, "status %q is unknown", name).WithHint("statuses are %s", strings.Join(names, ", "))
}

// SandboxUsage is what a living sandbox takes from its host.
type SandboxUsage struct {
	ID          string        `json:"id"`
	Template    string        `json:"template"`
	Version     int           `json:"version"`
	Size        string        `json:"size"`
	Status      SandboxStatus `json:"status"`
	CPUTime     time.Duration `json:"-"`            // of its VM since it started or woke last
	MemoryBytes int64         `json:"memory_bytes"` // shared pages count in shares (PSS)
	CreatedAt   time.Time     `json:"created_at"`
}

// LifecycleChange says what is to change about how long a sandbox lives; nil stays as it
// is.
type LifecycleChange struct {
	TTL         *time.Duration // from now on
	Persistent  *bool
	IdleTimeout *time.Duration // 0 means for ever
}

// SandboxFilter chooses sandboxes. A zero field chooses all.
type SandboxFilter struct {
	OrgID    string
	Statuses []SandboxStatus   // none means those that live
	Template string            // ID or name
	Metadata map[string]string // all of them must be equal
	After    SandboxCursor     // those that follow this one
	Limit    int               // 0 means no bound
}

// SandboxCursor is a place in a list of sandboxes, which are ordered by age, oldest first.
// It stays valid whatever is created or ends meanwhile.
type SandboxCursor struct {
	CreatedAt time.Time
	ID        string
}

// Cursor returns the place of s in a list.
func (s *Sandbox) Cursor() SandboxCursor { return SandboxCursor{s.CreatedAt, s.ID} }

// String returns an opaque token; "" for the zero cursor.
func (c SandboxCursor) String() string {
	if c.ID == "" {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(c.CreatedAt.UnixNano(), 10) + " " + c.ID))
}

// ParseSandboxCursor is the inverse of [SandboxCursor.String].
func ParseSandboxCursor(token string) (SandboxCursor, error) {
	if token == "" {
		return SandboxCursor{}, nil
	}
	text, err := base64.RawURLEncoding.DecodeString(token)
	at, id, ok := strings.Cut(string(text), " ")
	nanos, perr := strconv.ParseInt(at, 10, 64)
	if err != nil || perr != nil || !ok || id == "" {
		return SandboxCursor{}, Errorf(CodeInvalid, "the page token %.40q is not one that a list has returned", token)
	}
	return SandboxCursor{time.Unix(0, nanos).UTC(), id}, nil
}

// LocalOrgID is the organisation of everything on a server that knows only one.
const LocalOrgID = "local"

// DefaultTTL is the life of a sandbox whose request names none.
const DefaultTTL = 5 * time.Minute

// MaxTTL is the longest life that a request may ask for.
const MaxTTL = 24 * time.Hour

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewID returns prefix followed by 20 random characters of [a-z2-7] (100 bits). A
// sandbox ID has no prefix but the letter "i" so that it can be a DNS label.
func NewID(prefix string) string {
	var b [13]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand.Read aborts the program instead
	return prefix + strings.ToLower(idEncoding.EncodeToString(b[:]))[:20]
}

// NewSandboxID returns a fresh sandbox ID.
func NewSandboxID() string { return NewID("i") }

// NewTemplateID returns a fresh template ID.
func NewTemplateID() string { return NewID(TemplateIDPrefix) }

// Identity is what makes a clone itself. It is given after every restore, before the
// sandbox is handed out, and is in no golden snapshot.
type Identity struct {
	SandboxID   string
	Hostname    string
	Entropy     []byte // at least 32 fresh random bytes
	AccessToken string
	Env         map[string]string
}
