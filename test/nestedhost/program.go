package nestedhost

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/testkit"
)

// testTime bounds the tests of a package there: who exceeds it says where it stands, before
// the tests of this machine are out of time.
const testTime = 20 * time.Minute

// module is the path of the packages whose tests run here.
const module = "github.com/kilnvm/kiln/"

// Test runs the tests of a package, named by its path in the module, on the nested host,
// with more in their environment and flags of a test program ("-test.run=…"). It passes
// their output on and fails when one of them fails twice or is skipped, or when there is
// none. It returns the names of those that passed.
func (h *Host) Test(t *testing.T, pkg string, env map[string]string, flags ...string) map[string]bool {
	t.Helper()
	program := filepath.Join(testkit.ShortTempDir(t), strings.ReplaceAll(pkg, "/", "-")+".test")
	build(t, "test", "-c", "-o", program, module+pkg)
	h.Put(t, program)
	all := environment()
	maps.Copy(all, env)
	r, err := twice(t.Logf, func(more ...string) (report, error) {
		out := &lines{to: func(line string) { t.Log(line) }}
		args := []string{path.Join(programs, filepath.Base(program)), "-test.v", "-test.timeout=" + testTime.String()}
		exit, err := h.client.Run(context.WithoutCancel(t.Context()), guest.Command{
			Args: slices.Concat(args, flags, more), Env: all, Stdout: out, Stderr: out,
		})
		if err == nil && exit.Code != 0 {
			err = fmt.Errorf("exit code %d", exit.Code)
		}
		return read(out.seen), err
	})
	if err != nil {
		t.Fatalf("the tests of %s on the nested host: %v", pkg, err)
	}
	for _, name := range r.skipped {
		t.Errorf("a test was skipped: %s", name)
	}
	if len(r.passed) == 0 {
		t.Errorf("%s has no such tests", pkg)
	}
	return r.passed
}

// build runs the Go command for programs that run anywhere.
func build(t testing.TB, command string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{command, "-trimpath", "-buildvcs=false", "-ldflags=-s -w"}, args...)...)
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
}

// lines passes on what is written to it line by line, and keeps it.
type lines struct {
	to   func(line string)
	rest []byte
	seen []string
}

func (l *lines) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		l.seen = append(l.seen, string(line))
		l.to(string(line))
		l.rest = rest
	}
}
