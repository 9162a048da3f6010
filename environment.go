package kiln

import (
	"regexp"
	"strings"
)

// Bounds of names with values: an environment, or a user's own words. They keep rows and the
// guest's identity small, and every entry within what Linux takes as one string of a new
// process (execve(2), MAX_ARG_STRLEN).
const (
	MaxPairs     = 256
	MaxPairName  = 256         // bytes
	MaxPairBytes = 128<<10 - 2 // all names and values together; the "=" and NUL of one entry
)

// envName is what POSIX (XBD 8.1) says a portable name of an environment variable is,
// with lower case allowed.
var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// CheckEnv explains what is wrong with an environment, or returns nil.
func CheckEnv(env map[string]string) error {
	for name := range env {
		if !envName.MatchString(name) {
			return Errorf(CodeInvalid, "env: %.40q is no name of a variable", name).
				WithHint("use letters, digits and '_', not beginning with a digit")
		}
	}
	return CheckPairs("env", env)
}

// CheckPairs explains what is wrong with names and values, which are called what, or returns
// nil.
func CheckPairs(what string, pairs map[string]string) error {
	if len(pairs) > MaxPairs {
		return Errorf(CodeInvalid, "%s has %d entries; %d is the limit", what, len(pairs), MaxPairs)
	}
	total := 0
	for k, v := range pairs {
		switch {
		case k == "":
			return Errorf(CodeInvalid, "%s has an entry without a name", what)
		case len(k) > MaxPairName:
			return Errorf(CodeInvalid, "%s: name %.40q… is longer than %d bytes", what, k, MaxPairName)
		case strings.ContainsRune(k+v, 0):
			return Errorf(CodeInvalid, "%s: %.40q holds a NUL byte", what, k)
		}
		total += len(k) + len(v)
	}
	if total > MaxPairBytes {
		return Errorf(CodeInvalid, "%s has %d bytes; %d is the limit", what, total, MaxPairBytes)
	}
	return nil
}
