package image

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/kilnvm/kiln"
)

// dockerfile is the Dockerfile of one build.
type dockerfile struct {
	path    string // inside the context
	display string // as the user named it
	content []byte
}

const defaultDockerfile = "Dockerfile"

// readDockerfile reads it without leaving the context through a symlink.
func readDockerfile(src kiln.Source) (*dockerfile, error) {
	d := &dockerfile{path: src.Options.Dockerfile, display: src.DisplayName}
	if d.path == "" {
		d.path = defaultDockerfile
	}
	if d.display == "" {
		d.display = d.path
	}
	root, err := os.OpenRoot(src.Dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	d.content, err = root.ReadFile(d.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, d.fail("no such file in the build context", "name the Dockerfile relative to the context folder")
	case err != nil:
		return nil, d.fail("cannot be read: "+err.Error(), "")
	case len(strings.TrimSpace(string(d.content))) == 0:
		return nil, d.fail("the Dockerfile is empty", "the first instruction is FROM")
	}
	return d, nil
}

// mounts reports whether an instruction may have mounts.
func (d *dockerfile) mounts() bool {
	parsed, err := parser.Parse(bytes.NewReader(d.content))
	return err != nil || slices.ContainsFunc(parsed.AST.Children, func(n *parser.Node) bool { return hasMount(n.Original) })
}

func hasMount(instruction string) bool {
	return strings.Contains(strings.ToLower(instruction), "--mount")
}

// fail returns a build error about the file as a whole.
func (d *dockerfile) fail(message, hint string) *kiln.BuildError {
	return &kiln.BuildError{Stage: kiln.StageImage, File: d.display, Message: message, Hint: hint}
}

// line returns the text of a line, counted from 1, or "".
func (d *dockerfile) line(n int) string {
	lines := strings.Split(string(d.content), "\n")
	if n < 1 || n > len(lines) {
		return ""
	}
	return strings.TrimRight(lines[n-1], "\r ")
}

// lineMatching returns the number of the first line that matches, or 0.
func (d *dockerfile) lineMatching(pattern *regexp.Regexp) int {
	for i, line := range strings.Split(string(d.content), "\n") {
		if pattern.MatchString(line) {
			return i + 1
		}
	}
	return 0
}

// lineOf returns the line of the instruction that a step of BuildKit's runs, or 0. The
// name of a step is "[stage 2/3] INSTRUCTION".
func (d *dockerfile) lineOf(step string) int {
	_, instruction, ok := strings.Cut(step, "] ")
	if !ok {
		return 0
	}
	parsed, err := parser.Parse(bytes.NewReader(d.content))
	if err != nil {
		return 0
	}
	for _, node := range parsed.AST.Children {
		if strings.Join(strings.Fields(node.Original), " ") == strings.Join(strings.Fields(instruction), " ") {
			return node.StartLine
		}
	}
	return 0
}
