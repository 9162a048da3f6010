package image

import (
	"bytes"
	"slices"
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"
)

// TestPrivateDefinition rewrites the definition of one step and one that follows it.
func TestPrivateDefinition(t *testing.T) {
	for name, tc := range map[string]struct {
		option  llb.RunOption
		private bool
	}{
		"plain":                 {llb.Dir("/"), false},
		"mount":                 {llb.AddMount("/c", llb.Scratch()), false},
		"cache":                 {llb.AddMount("/c", llb.Scratch(), llb.AsPersistentCacheDir("c", llb.CacheMountShared)), true},
		"secret":                {llb.AddSecret("/run/secrets/s", llb.SecretID("s")), true},
		"secret in environment": {llb.AddSecret("S", llb.SecretID("s"), llb.SecretAsEnv(true)), true},
		"SSH agent":             {llb.AddSSHSocket(), true},
		"proxy":                 {llb.WithProxy(llb.ProxyEnv{HTTPProxy: "http://proxy"}), true},
	} {
		t.Run(name, func(t *testing.T) {
			file := llb.NewSourceMap(nil, "Dockerfile", "", []byte("RUN x"))
			where := file.Location([]*pb.Range{{Start: &pb.Position{Line: 1}}})
			step := llb.Image("base").Run(llb.Args([]string{"x"}), tc.option, where, llb.WithCustomName("step"))
			marshalled, err := step.Root().File(llb.Mkdir("/d", 0o755)).Marshal(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			def := marshalled.ToPB()
			ours, theirs := private(t, def, "org_a"), private(t, def, "org_b")
			if changed := !slices.EqualFunc(ours.Def, def.Def, bytes.Equal); changed != tc.private {
				t.Errorf("changed %v, want %v", changed, tc.private)
			}
			if shared := slices.EqualFunc(ours.Def, theirs.Def, bytes.Equal); shared == tc.private {
				t.Errorf("shared %v, want %v", shared, !tc.private)
			}
			checkNames(t, ours)
		})
	}
}

func private(t *testing.T, def *pb.Definition, orgID string) *pb.Definition {
	t.Helper()
	out, err := privateDefinition(def, orgID)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// checkNames holds all that names a step against the steps there are.
func checkNames(t *testing.T, def *pb.Definition) {
	t.Helper()
	steps := map[string]bool{}
	named := 0
	for _, content := range def.Def {
		op := &pb.Op{}
		if err := proto.Unmarshal(content, op); err != nil {
			t.Fatal(err)
		}
		for _, in := range op.Inputs {
			if !steps[in.Digest] {
				t.Errorf("a step takes the output of %s, which is not before it", in.Digest)
			}
		}
		name := digest.FromBytes(content).String()
		steps[name] = true
		if op.GetExec() != nil && (def.Metadata[name].GetDescription()["llb.customname"] != "step" || def.Source.Locations[name] == nil) {
			t.Errorf("metadata %v, place %v", def.Metadata[name], def.Source.Locations[name])
		}
		if def.Metadata[name] != nil {
			named++
		}
	}
	if named != len(def.Metadata) || len(def.Metadata) == 0 {
		t.Errorf("%d of %d metadata belong to a step", named, len(def.Metadata))
	}
}
