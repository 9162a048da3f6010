// Package test holds the tests that concern Kiln as a whole.
package test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/kilnvm/kiln"

type listedPackage struct {
	ImportPath string
	Imports    []string
	Deps       []string
	Standard   bool
}

// TestLayering enforces the import rules of DESIGN.md section 3.
func TestLayering(t *testing.T) {
	packages := listPackages(t)
	stages := []string{"source", "image", "rootfs", "snapshot", "sandbox"}

	for path, p := range packages {
		if p.Standard || !strings.HasPrefix(path, module) {
			continue
		}
		name := strings.TrimPrefix(strings.TrimPrefix(path, module), "/")
		switch {
		case name == "":
			for _, dep := range p.Deps {
				if !packages[dep].Standard {
					t.Errorf("the root package depends on %s; it may use the standard library only", dep)
				}
			}
		case strings.HasPrefix(name, "internal/"):
			for _, imp := range p.Imports {
				if strings.HasPrefix(imp, module+"/cmd/") {
					t.Errorf("%s imports %s; only cmd/ wires", name, imp)
				}
			}
		}
		if stage := stageOf(name, stages); stage != "" {
			for _, imp := range p.Imports {
				other := stageOf(strings.TrimPrefix(imp, module+"/"), stages)
				if other != "" && other != stage {
					t.Errorf("%s imports the stage %s; stages never import one another", name, other)
				}
			}
		}
		if under(name, "internal/sandboxd") || under(name, "cmd/kiln-sandboxd") {
			for _, dep := range p.Deps {
				if strings.HasPrefix(dep, module) && !guestSide(strings.TrimPrefix(strings.TrimPrefix(dep, module), "/")) {
					t.Errorf("%s depends on the host package %s; the guest daemon must not", name, dep)
				}
			}
		}
		if under(name, "internal/api") {
			for _, dep := range p.Deps {
				for _, vm := range []string{"internal/vmm", "internal/link", "internal/snapshot", "internal/sandbox"} {
					if under(strings.TrimPrefix(dep, module+"/"), vm) {
						t.Errorf("%s depends on %s; api reaches VMs only through interfaces it declares", name, dep)
					}
				}
			}
		}
	}
}

// guestSide lists what is compiled into the guest daemon.
func guestSide(name string) bool {
	for _, own := range []string{"internal/sandboxd", "internal/guestapi", "internal/guestnet", "internal/link", "cmd/kiln-sandboxd"} {
		if under(name, own) {
			return true
		}
	}
	return false
}

func stageOf(name string, stages []string) string {
	for _, s := range stages {
		if under(name, "internal/"+s) {
			return s
		}
	}
	return ""
}

func under(name, dir string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }

func listPackages(t *testing.T) map[string]listedPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Imports,Deps,Standard", "../...")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	packages := map[string]listedPackage{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listedPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages[p.ImportPath] = p
	}
}
