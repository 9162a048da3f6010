package sandbox

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/cgroup"
)

// testGroups returns a tree of control groups that must be empty at the end of the test.
func testGroups(t testing.TB) *cgroup.Tree {
	t.Helper()
	tree, err := cgroup.Open(fmt.Sprintf("test-%d", os.Getpid()), strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if names, err := tree.List(); err != nil || len(names) > 0 {
			t.Errorf("control groups %v are left, error %v", names, err)
		}
		if err := tree.Sweep(context.Background()); err != nil {
			t.Error(err)
		}
		tree.Close()
	})
	return tree
}

// checkGroup fails the test unless the VM of s is bounded by its own group.
func checkGroup(t *testing.T, tree *cgroup.Tree, s *kiln.Sandbox) {
	t.Helper()
	pid := strconv.Itoa(s.Process.PID)
	limits := 0
	for _, dir := range tree.Dirs(s.ID) {
		procs, err := os.ReadFile(dir + "/cgroup.procs")
		if err != nil || !slices.Contains(strings.Fields(string(procs)), pid) {
			t.Errorf("%s holds %q, error %v; want process %s", dir, procs, err, pid)
		}
		for _, name := range []string{"memory.max", "memory.limit_in_bytes"} {
			if b, err := os.ReadFile(dir + "/" + name); err == nil {
				limits++
				want := strconv.Itoa(cgroup.For(kiln.Sizes()[0]).MemoryMiB << 20)
				if got := strings.TrimSpace(string(b)); got != want {
					t.Errorf("%s is %s, want %s", name, got, want)
				}
			}
		}
	}
	if limits == 0 {
		t.Errorf("the group of %s bounds no memory: %v", s.ID, tree.Dirs(s.ID))
	}
}

func TestSandboxHasItsControlGroup(t *testing.T) {
	var tree *cgroup.Tree
	h := newHost(t, func(o *Options) {
		tree = testGroups(t)
		o.Groups = tree
	})
	s := h.create(t, hello())
	checkGroup(t, tree, s)
	if err := h.Destroy(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	if names, err := tree.List(); err != nil || len(names) > 0 {
		t.Errorf("control groups %v outlive their sandbox, error %v", names, err)
	}
}

// A server that died leaves groups with VMs in them; the rows or folders bear their names.
func TestReconcileRemovesControlGroups(t *testing.T) {
	var tree *cgroup.Tree
	h := newHost(t, func(o *Options) {
		tree = testGroups(t)
		o.Groups = tree
	})
	if err := tree.Make("ileftover", cgroup.Limits{PIDs: 10}); err != nil {
		t.Fatal(err)
	}
	if err := h.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if names, err := tree.List(); err != nil || len(names) > 0 {
		t.Errorf("control groups %v are left, error %v", names, err)
	}
}
