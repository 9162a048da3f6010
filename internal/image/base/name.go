package base

import (
	"fmt"

	"github.com/distribution/reference"
)

// Name is an image name with everything implicit made explicit
// ("debian" is docker.io/library/debian:latest).
type Name struct{ ref reference.Named }

// ParseName parses a name as it may stand in a FROM line.
func ParseName(s string) (Name, error) {
	ref, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Name{}, fmt.Errorf("image name %q: %w", s, err)
	}
	return Name{ref: reference.TagNameOnly(ref)}, nil
}

// String returns the name as people write it: "debian:bookworm".
func (n Name) String() string { return reference.FamiliarString(n.ref) }

// Full returns the name with registry: "docker.io/library/debian:bookworm".
func (n Name) Full() string { return n.ref.String() }

// Domain is the registry, "docker.io".
func (n Name) Domain() string { return reference.Domain(n.ref) }

// Path is the repository inside the registry, "library/debian".
func (n Name) Path() string { return reference.Path(n.ref) }

// Tag returns the tag, or "" when the name is pinned by digest alone.
func (n Name) Tag() string {
	if t, ok := n.ref.(reference.Tagged); ok {
		return t.Tag()
	}
	return ""
}

// Digest returns the digest that the name is pinned to, or "".
func (n Name) Digest() string {
	if d, ok := n.ref.(reference.Digested); ok {
		return d.Digest().String()
	}
	return ""
}
