package test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// A transcript is one fenced block of a document whose info string is "console": lines
// that begin with "$ " are commands, what follows is what they print. In the expected
// output "…" stands for any text within a line, and a line of only "…" for any lines.
type transcript struct {
	file  string
	line  int
	steps []transcriptStep
}

type transcriptStep struct {
	line    int
	command string
	output  []string
}

// runTranscripts executes every transcript of the documents in their order, in dir and
// with env, as a reader would who types them one after the other.
func runTranscripts(t *testing.T, dir string, env []string, documents ...string) {
	t.Helper()
	for _, document := range documents {
		for _, block := range transcripts(t, document) {
			for _, step := range block.steps {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
				cmd := exec.CommandContext(ctx, "bash", "-c", step.command)
				cmd.Dir, cmd.Env = dir, env
				var out bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &out
				err := cmd.Run()
				cancel()
				if !matchOutput(step.output, out.String()) {
					t.Errorf("%s:%d: $ %s\nprinted (%v):\n%s\nbut the document says:\n%s",
						block.file, step.line, step.command, err, out.String(), strings.Join(step.output, "\n"))
				}
			}
		}
	}
}

func transcripts(t *testing.T, document string) []transcript {
	t.Helper()
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	var found []transcript
	inside := false
	for i, line := range strings.Split(string(text), "\n") {
		switch {
		case line == "```console":
			inside = true
			found = append(found, transcript{file: filepath.Base(document), line: i + 1})
		case strings.HasPrefix(line, "```"):
			inside = false
		case inside:
			block := &found[len(found)-1]
			if command, ok := strings.CutPrefix(line, "$ "); ok {
				block.steps = append(block.steps, transcriptStep{line: i + 1, command: command})
				continue
			}
			if len(block.steps) == 0 {
				t.Fatalf("%s:%d: output before the first command", document, i+1)
			}
			last := &block.steps[len(block.steps)-1]
			if n := len(last.output); n == 0 && strings.HasSuffix(last.command, `\`) {
				last.command += "\n" + line
				continue
			}
			last.output = append(last.output, line)
		}
	}
	return found
}

func matchOutput(want []string, got string) bool {
	var pattern strings.Builder
	pattern.WriteString(`(?s)^`)
	for _, line := range want {
		if line == "…" {
			pattern.WriteString(`.*?`)
			continue
		}
		for i, part := range strings.Split(strings.TrimRight(line, " "), "…") {
			if i > 0 {
				pattern.WriteString(`[^\n]*`)
			}
			// Columns are as wide as their content: any run of spaces matches any other.
			fields := regexp.MustCompile(` {2,}`).Split(part, -1)
			for j := range fields {
				fields[j] = regexp.QuoteMeta(fields[j])
			}
			pattern.WriteString(strings.Join(fields, ` +`))
		}
		pattern.WriteString(` *\n`)
	}
	pattern.WriteString(`$`)
	return regexp.MustCompile(pattern.String()).MatchString(got)
}

// TestDocuments runs every example of the guides against a real server.
func TestDocuments(t *testing.T) {
	s := newServer(t)
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "examples"), os.DirFS("../examples")); err != nil {
		t.Fatal(err)
	}
	runTranscripts(t, dir, s.env(), "../docs/templates.md", "../docs/sandboxes.md", "../docs/network.md", "../docs/organisations.md")
}

// TestReadmeCommands holds the commands of the README against what exists.
func TestReadmeCommands(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	targets := regexp.MustCompile(`(?m)^make ([a-z]+)`).FindAllStringSubmatch(string(readme), -1)
	if len(targets) < 3 {
		t.Errorf("the README names %d make targets", len(targets))
	}
	for _, m := range targets {
		if !strings.Contains(string(makefile), "\n"+m[1]+":") {
			t.Errorf("the README says `make %s`, which the Makefile does not have", m[1])
		}
	}
	for _, m := range regexp.MustCompile(`\]\(([^)]+)\)`).FindAllStringSubmatch(string(readme), -1) {
		if _, err := os.Stat(filepath.Join("..", m[1])); err != nil {
			t.Errorf("the README links to what is not there: %v", err)
		}
	}
}

func TestMatchOutput(t *testing.T) {
	for _, c := range []struct {
		want []string
		got  string
		ok   bool
	}{
		{nil, "", true},
		{nil, "x\n", false},
		{[]string{"42"}, "42\n", true},
		{[]string{"42"}, "421\n", false},
		{[]string{"ready in … ms"}, "ready in 71 ms\n", true},
		{[]string{"ready in … ms"}, "ready in\n71 ms\n", false},
		{[]string{"…", "end"}, "one\ntwo\nend\n", true},
		{[]string{"NAME  STATUS"}, "NAME       STATUS\n", true},
		{[]string{"a.c"}, "abc\n", false},
	} {
		if got := matchOutput(c.want, c.got); got != c.ok {
			t.Errorf("matchOutput(%q, %q) = %v", c.want, c.got, got)
		}
	}
}
