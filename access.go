package kiln

import (
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
)

// Scope is one thing that a token allows. Writing includes reading the same things.
type Scope string

const (
	ScopeTemplatesRead  Scope = "templates:read"
	ScopeTemplatesWrite Scope = "templates:write"
	ScopeSandboxesRead  Scope = "sandboxes:read"
	ScopeSandboxesWrite Scope = "sandboxes:write"
	// ScopeAdmin allows everything within the token's organisation. For [LocalOrgID] that
	// includes the organisations and the server itself.
	ScopeAdmin Scope = "admin"
)

// Scopes returns every scope.
func Scopes() []Scope {
	return []Scope{ScopeTemplatesRead, ScopeTemplatesWrite, ScopeSandboxesRead, ScopeSandboxesWrite, ScopeAdmin}
}

// CheckScopes explains what is wrong with the scopes of a new token, or returns nil.
func CheckScopes(scopes []Scope) error {
	if len(scopes) == 0 {
		return Errorf(CodeInvalid, "no scope given").WithHint("choose from %s", scopeNames())
	}
	for _, s := range scopes {
		if !slices.Contains(Scopes(), s) {
			return Errorf(CodeInvalid, "scope %q does not exist", s).WithHint("choose from %s", scopeNames())
		}
	}
	return nil
}

func scopeNames() string {
	var names []string
	for _, s := range Scopes() {
		names = append(names, string(s))
	}
	return strings.Join(names, ", ")
}

// Token is a credential of an organisation. Its secret is known only to whoever made it.
type Token struct {
	ID        string    `json:"id"` // "tok_…"
	OrgID     string    `json:"org_id"`
	Name      string    `json:"name"` // for people; unique among those of the organisation
	Scopes    []Scope   `json:"scopes"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at,omitzero"` // zero: never
}

// TokenPrefix begins the secret of every token, so that people, secret scanners and the
// proxy recognise one.
const TokenPrefix = "kiln_"

// TokenIDPrefix begins the ID of every token, and the name of none.
const TokenIDPrefix = "tok_"

// MaxTokenTTL is the longest life of a token that ends.
const MaxTokenTTL = 10 * 365 * 24 * time.Hour

// Expired reports whether the token is void by its age.
func (t *Token) Expired(now time.Time) bool { return !t.ExpiresAt.IsZero() && !now.Before(t.ExpiresAt) }

// MaxTokenName is the longest name of a token in bytes.
const MaxTokenName = 128

// CheckTokenName explains what is wrong with the name of a token, or returns nil.
func CheckTokenName(name string) error {
	if name == "" || len(name) > MaxTokenName || strings.ContainsFunc(name, unicode.IsControl) {
		return Errorf(CodeInvalid, "token name %.40q is not allowed", name).WithHint("use 1 to %d printable characters", MaxTokenName)
	}
	if strings.HasPrefix(name, TokenIDPrefix) {
		return Errorf(CodeInvalid, "token name %.40q is not allowed", name).WithHint("IDs begin with %s, names do not", TokenIDPrefix)
	}
	return nil
}

// Principal is whoever a request acts for: a token of an organisation.
type Principal struct {
	OrgID     string
	TokenID   string
	TokenName string
	Scopes    []Scope
	ExpiresAt time.Time // zero: never
}

// Allows reports whether the principal's token covers a scope.
func (p Principal) Allows(s Scope) bool {
	for _, have := range p.Scopes {
		if have == s || have == ScopeAdmin {
			return true
		}
		if kind, ok := strings.CutSuffix(string(have), ":write"); ok && string(s) == kind+":read" {
			return true
		}
	}
	return false
}

// Operator reports whether the principal runs the server, and not only an organisation.
func (p Principal) Operator() bool { return p.OrgID == LocalOrgID && p.Allows(ScopeAdmin) }

// Org is an organisation: templates and sandboxes belong to one, and no other sees them.
type Org struct {
	ID        string    `json:"id"` // "org_…", or [LocalOrgID]
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
}

// NewOrgID returns a fresh organisation ID.
func NewOrgID() string { return NewID("org_") }

var orgName = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$`)

// CheckOrgName explains what is wrong with an organisation's name, or returns nil.
func CheckOrgName(name string) error {
	if !orgName.MatchString(name) {
		return Errorf(CodeInvalid, "organisation name %.70q is not allowed", name).
			WithHint("use 1 to 63 lower-case letters, digits and '-', beginning and ending with a letter or digit")
	}
	return nil
}

// AuditIDPrefix begins the ID of every event.
const AuditIDPrefix = "aud_"

// AuditEvent is one change that somebody made.
type AuditEvent struct {
	ID        string            `json:"id"` // "aud_…"
	OrgID     string            `json:"org_id"`
	Time      time.Time         `json:"time"`
	TokenID   string            `json:"token_id"`
	TokenName string            `json:"token_name"`
	Address   string            `json:"address"` // where the request came from
	Action    string            `json:"action"`  // the operation of the API
	Target    string            `json:"target"`  // what was changed
	Detail    map[string]string `json:"detail,omitempty"`
}

// Tag is a name of one version of a template.
type Tag struct {
	Name      string    `json:"tag"`
	Version   int       `json:"version"`
	BuildID   string    `json:"build_id"`
	CreatedAt time.Time `json:"created_at"` // when it was last moved
}

// LatestTag follows the promoted version. Nobody sets it by hand.
const LatestTag = "latest"

var tagName = regexp.MustCompile(`^[a-z0-9._-]{1,64}$`)

// CheckTag explains what is wrong with a tag that a user sets, or returns nil.
func CheckTag(tag string) error {
	if tag == LatestTag {
		return Errorf(CodeInvalid, "tag %q follows the current version by itself", tag).WithHint("use `kiln templates rollback` to change the current version")
	}
	if !tagName.MatchString(tag) {
		return Errorf(CodeInvalid, "tag %.70q is not allowed", tag).WithHint("use 1 to 64 lower-case letters, digits, '.', '_' and '-'")
	}
	return nil
}
