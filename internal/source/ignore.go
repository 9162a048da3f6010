package source

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/kilnvm/kiln"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

const (
	defaultDockerfile = "Dockerfile"
	ignoreFile        = ".dockerignore"
)

// ignoreRules are the patterns that apply to one build.
type ignoreRules struct {
	matcher *patternmatcher.PatternMatcher
	// always lists files that belong to the context whatever the patterns say: the
	// Dockerfile, the ignore files and the metadata file all decide what is built.
	always map[string]bool
}

// loadIgnore reads the patterns for the given Dockerfile. As in BuildKit a file named
// like the Dockerfile with ".dockerignore" appended is used instead of .dockerignore.
func loadIgnore(root *os.Root, dockerfile string) (*ignoreRules, error) {
	own := dockerfile + ignoreFile
	patterns, name, err := readPatterns(root, own, ignoreFile)
	if err != nil {
		return nil, err
	}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, &kiln.BuildError{Stage: kiln.StageSource, File: name, Message: err.Error(), Err: err}
	}
	always := map[string]bool{dockerfile: true, ignoreFile: true, own: true}
	for _, f := range kiln.MetadataFiles() {
		always[f] = true
	}
	return &ignoreRules{matcher: m, always: always}, nil
}

func readPatterns(root *os.Root, names ...string) (patterns []string, name string, err error) {
	for _, name := range names {
		f, err := root.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, name, fmt.Errorf("ignore file: %w", err)
		}
		patterns, err := ignorefile.ReadAll(f)
		_ = f.Close()
		if err != nil {
			return nil, name, &kiln.BuildError{Stage: kiln.StageSource, File: name, Message: err.Error(), Err: err}
		}
		return patterns, name, nil
	}
	return nil, "", nil
}

// mayHoldIncluded reports whether something below the ignored directory dir can still
// belong to the context: by a negated pattern, or because it always does.
func (r *ignoreRules) mayHoldIncluded(dir string) bool {
	for f := range r.always {
		if strings.HasPrefix(f, dir+"/") {
			return true
		}
	}
	if !r.matcher.Exclusions() {
		return false
	}
	for _, p := range r.matcher.Patterns() {
		if p.Exclusion() && mayMatchBelow(p.String(), dir) {
			return true
		}
	}
	return false
}

// mayMatchBelow compares a pattern with a directory element by element, as far as the
// pattern has no wildcard that spans elements. It errs on the side of true.
func mayMatchBelow(pattern, dir string) bool {
	want := strings.Split(dir, "/")
	for i, elem := range strings.Split(pattern, "/") {
		if i >= len(want) || strings.Contains(elem, "**") {
			return true
		}
		ok, err := path.Match(elem, want[i])
		if err != nil {
			return true
		}
		if !ok {
			return false
		}
	}
	return true // the pattern names dir itself or a parent
}
