package source

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/distribution/reference"

	"github.com/kilnvm/kiln"
)

// Bounds of what a template says of itself, in bytes where nothing else is said. Lists show
// hundreds of templates, and a command is one argument of a shell.
const (
	maxDescription = 2 << 10
	maxLine        = 256 // author, icon
	maxTag         = 64
	maxTags        = 32 // entries
	maxCommand     = 32 << 10
	maxBases       = 16 // entries
)

// checkTexts checks the texts of m; errors name the key.
func checkTexts(m kiln.Metadata) error {
	for _, f := range []struct{ key, text string }{
		{"description", m.Description}, {"author", m.Author}, {"icon", m.Icon}, {"start_cmd", m.StartCmd}, {"ready_cmd", m.ReadyCmd},
		{"post_restore", m.PostRestore}, {"smoke", m.Smoke}, {"build.target", m.Build.Target},
	} {
		if err := checkText(f.key, f.text); err != nil {
			return kiln.Errorf(kiln.CodeInvalid, "%s: %v", f.key, err)
		}
	}
	if err := checkTags(m.Tags); err != nil {
		return kiln.Errorf(kiln.CodeInvalid, "tags: %v", err)
	}
	if err := checkBases(m.Build.Base); err != nil {
		return kiln.Errorf(kiln.CodeInvalid, "build.base: %v", err)
	}
	return checkArgs(m.Build.Args)
}

const buildArgs = "build.args"

func checkArgs(args map[string]string) error { return kiln.CheckPairs(buildArgs, args) }

// checkText checks the value of a key that holds a text.
func checkText(key, text string) error {
	switch key {
	case "description":
		return checkLines(text, maxDescription, "\n\r\t")
	case "start_cmd", "ready_cmd", "post_restore", "smoke":
		if len(text) > maxCommand {
			return tooLarge(text, maxCommand)
		}
		if strings.ContainsRune(text, 0) {
			return errNUL
		}
		return nil
	}
	return checkLines(text, maxLine, "")
}

var errNUL = errors.New("contains a NUL character")

func tooLarge(text string, limit int) error {
	return fmt.Errorf("has %d bytes; %d is the limit", len(text), limit)
}

// checkLines checks a text for people, which may hold none but the allowed control
// characters.
func checkLines(text string, limit int, allowed string) error {
	if len(text) > limit {
		return tooLarge(text, limit)
	}
	for _, r := range text {
		switch {
		case r == 0:
			return errNUL
		case unicode.IsControl(r) && !strings.ContainsRune(allowed, r):
			return fmt.Errorf("contains the control character %U", r)
		}
	}
	return nil
}

func checkTags(tags []string) error {
	if len(tags) > maxTags {
		return fmt.Errorf("has %d entries; %d is the limit", len(tags), maxTags)
	}
	seen := map[string]bool{}
	for _, tag := range tags {
		if err := checkLines(tag, maxTag, ""); err != nil {
			return fmt.Errorf("%.40q %w", tag, err)
		}
		switch {
		case strings.TrimSpace(tag) == "":
			return errors.New("holds an empty one")
		case seen[tag]:
			return fmt.Errorf("%q is given twice", tag)
		}
		seen[tag] = true
	}
	return nil
}

func checkBases(names []string) error {
	if len(names) > maxBases {
		return fmt.Errorf("has %d entries; %d is the limit", len(names), maxBases)
	}
	for _, name := range names {
		if _, err := reference.ParseNormalizedNamed(name); err != nil {
			return fmt.Errorf("%.80q is no name of an image: %w", name, err)
		}
	}
	return nil
}
