package test

import (
	"os"
	"strings"
	"testing"

	"github.com/kilnvm/kiln/catalog"
)

// catalogUnderTest returns the built-in templates that are built here: the plainest and the
// one with most of its own in it, or all of them in a soak.
func catalogUnderTest() []string {
	if os.Getenv("KILN_SOAK") == "1" {
		return catalog.Names()
	}
	return []string{"blank", "code-interpreter"}
}

// TestCatalog builds built-in templates and runs their smoke commands in clones.
func TestCatalog(t *testing.T) {
	s := newServer(t)
	list := s.must("templates", "list")
	for _, name := range catalog.Names() {
		if !strings.Contains(list, name) {
			t.Errorf("the server does not know %s:\n%s", name, list)
		}
	}
	for _, name := range catalogUnderTest() {
		t.Run(name, func(t *testing.T) {
			s := s.in(t)
			if name == "blank" { // by its first use, and under another name
				r := s.kiln("sandbox", "run", "-t", "ubuntu-24.04", "--", "id", "-u")
				if r.code != 0 || r.stdout != "0\n" || !strings.Contains(r.stderr, "built on its first use") {
					t.Fatalf("exit code %d\n%s%s", r.code, r.stdout, r.stderr)
				}
			} else {
				s.must("templates", "build", "--builtin", name)
			}
			t.Log(s.must("templates", "smoke", name))
			if again := s.must("templates", "build", "--builtin", name); !strings.Contains(again, "no change") {
				t.Errorf("built again: %s", again)
			}
			if r := s.kiln("templates", "delete", name); r.code != 5 {
				t.Errorf("delete: exit code %d\n%s", r.code, r.stderr)
			}
		})
	}
	t.Run("kernel", func(t *testing.T) { testKernel(t, s.in(t)) })
	t.Run("Hazard02", func(t *testing.T) { testGeneratorsDiffer(t, s.in(t)) })
}

// testKernel runs code in the kernel that was in the snapshot.
func testKernel(t *testing.T, s *server) {
	id := strings.TrimSpace(s.must("sandbox", "create", "-t", "code-interpreter", "--ttl", "10m", "-e", "GIVEN=to this sandbox"))
	defer s.must("sandbox", "destroy", id)
	if out := s.must("sandbox", "run-code", id, "-c", "x = 40\nx + 2"); out != "42\n" {
		t.Errorf("first result %q", out)
	}

	dir := t.TempDir()
	for _, c := range []struct {
		name, code     string
		exit           int
		stdout, stderr string
	}{
		{"state stays", "print(x)", 0, "40\n", ""},
		{"the sandbox's environment", "import os; print(os.environ['GIVEN'])", 0, "to this sandbox\n", ""},
		{"both streams", "import sys; print('out'); print('err', file=sys.stderr)", 0, "out\n", "err\n"},
		{"a string is shown without quotes", "'text'", 0, "text\n", ""},
		{"an error", "1 / 0", 1, "", "ZeroDivisionError"},
		{"a picture", "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()", 0, "result-1.png", ""},
	} {
		r := s.kiln("sandbox", "run-code", id, "--save", dir, "-c", c.code)
		if r.code != c.exit || !strings.Contains(r.stdout, c.stdout) || !strings.Contains(r.stderr, c.stderr) {
			t.Errorf("%s: exit code %d\n%s%s", c.name, r.code, r.stdout, r.stderr)
		}
	}
	if picture, err := os.ReadFile(dir + "/result-1.png"); err != nil || !strings.HasPrefix(string(picture), "\x89PNG") {
		t.Errorf("the picture: %v", err)
	}
	if r := s.kiln("sandbox", "run-code", id, "--context", "nothing", "-c", "1"); r.code != 125 || !strings.Contains(r.stderr, "nothing not found") {
		t.Errorf("an unknown context: exit code %d\n%s", r.code, r.stderr)
	}
	if r := s.kiln("sandbox", "run-code", "-t", "blank", "-c", "1"); r.code != 125 || !strings.Contains(r.stderr, "code-interpreter") {
		t.Errorf("without an interpreter: exit code %d\n%s", r.code, r.stderr)
	}
}

// testGeneratorsDiffer proves row 2 of the hazards for the kernel: what was seeded before the
// snapshot is seeded anew in every clone.
func testGeneratorsDiffer(t *testing.T, s *server) {
	const code = "import random, numpy; print(random.random(), numpy.random.rand())"
	seen := map[string]bool{}
	for range 3 {
		for _, number := range strings.Fields(s.must("sandbox", "run-code", "-t", "code-interpreter", "-c", code)) {
			if seen[number] {
				t.Errorf("%s came up in two clones", number)
			}
			seen[number] = true
		}
	}
	if len(seen) != 6 {
		t.Errorf("%d numbers", len(seen))
	}
}
