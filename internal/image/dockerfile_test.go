package image

import (
	"slices"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/image/base"
)

// TestStageNames refuses stages that BuildKit would take for a base image, and no others.
func TestStageNames(t *testing.T) {
	var images []base.Image
	for _, name := range []string{"debian", "golang:1.26", "localhost:5000/tool"} {
		ref, err := base.ParseName(name)
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, base.Image{Ref: ref})
	}
	cases := []struct {
		dockerfile string
		line       int
	}{
		{"FROM debian AS build\nFROM build\n", 0},
		{"FROM golang:1.26 AS golang\n", 0},
		{"FROM debian\n", 0},
		{"FROM debian AS debian\n", 1},
		{"# comment\nARG X\nfrom debian as Debian\n", 3},
		{"FROM golang:1.26\nFROM scratch AS debian\n", 2},
	}
	for _, tc := range cases {
		file := &dockerfile{display: "Dockerfile", content: []byte(tc.dockerfile)}
		err := file.checkStageNames(images)
		fault, _ := err.(*kiln.BuildError)
		switch {
		case tc.line == 0 && err != nil:
			t.Errorf("%q: %v", tc.dockerfile, err)
		case tc.line > 0 && (fault == nil || fault.Line != tc.line || fault.Hint == ""):
			t.Errorf("%q: %v, want line %d", tc.dockerfile, err, tc.line)
		}
	}
}

// TestLineOf finds the instruction of a step by its name.
func TestLineOf(t *testing.T) {
	file := &dockerfile{content: []byte("FROM x\nRUN a &&   \\\n    b\n\nRUN c\n")}
	for step, line := range map[string]int{
		"[2/3] RUN a && b": 2, "[stage 3/3] RUN c": 5, "[4/4] RUN d": 0, "exporting": 0,
	} {
		if got := file.lineOf(step); got != line {
			t.Errorf("%s: line %d, want %d", step, got, line)
		}
	}
}

// TestHazard11Redaction keeps secrets out of every line.
func TestHazard11Redaction(t *testing.T) {
	r := newRedactor(map[string][]byte{"key": []byte("-----BEGIN-----\nQUJDREVG\n-----END-----\n"), "short": []byte("ab")})
	lines := &recorder{}
	w := &lineWriter{progress: lines, redact: r}
	for _, part := range []string{"x QUJD", "REVG y\r\nab\n-----BE", "GIN-----"} {
		if _, err := w.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	w.flush()
	if want := []string{"x *** y", "ab", "***"}; !slices.Equal(lines.lines, want) {
		t.Errorf("lines = %q, want %q", lines.lines, want)
	}
}

type recorder struct{ lines []string }

func (r *recorder) Log(_ kiln.Stage, line string) { r.lines = append(r.lines, line) }

// TestClean shortens messages as BuildKit composes them.
func TestClean(t *testing.T) {
	for message, want := range map[string]string{
		`failed to solve: process "/bin/sh -c x" did not complete successfully: exit code: 1`:                                                  `process "/bin/sh -c x" did not complete successfully: exit code: 1`,
		`failed to solve: failed to compute cache key: failed to calculate checksum of ref ` + strings.Repeat("a", 9) + `::b: "/x": not found`: `"/x": not found`,
		`dockerfile parse error on line 3: unknown instruction: X`:                                                                             `unknown instruction: X`,
	} {
		if got := clean(message); got != want {
			t.Errorf("clean(%q) = %q, want %q", message, got, want)
		}
	}
}
