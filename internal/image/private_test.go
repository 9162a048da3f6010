package image_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/image"
	"github.com/kilnvm/kiln/internal/image/imagetest"
)

// TestHazard27Organisations builds the same recipes for two organisations. What their steps see of
// secrets and caches is their own; all else is made once.
func TestHazard27Organisations(t *testing.T) {
	b := imagetest.Builder(t)
	// unique makes the steps of this run others than those of the run before.
	unique := "RUN echo " + b32(t)
	recipe := func(org string, lines ...string) kiln.Source {
		src := imagetest.Source(t, map[string]string{"Dockerfile": "FROM " + imagetest.BaseImage + "\nRUN mkdir /out\n" + unique + "\n" + strings.Join(lines, "\n") + "\n"})
		src.OrgID = org
		return src
	}
	t.Run("results", func(t *testing.T) {
		const random = "cat /proc/sys/kernel/random/uuid > /x"
		steps := map[string]struct {
			step   string
			shared bool
		}{
			"plain":                 {"RUN " + random, true},
			"mount":                 {"RUN --mount=type=bind,target=/c " + random, true},
			"cache":                 {"RUN --mount=type=cache,target=/c " + random, false},
			"named-cache":           {"RUN --mount=type=cache,target=/c,id=" + b32(t) + ",sharing=locked " + random, false},
			"secret":                {"RUN --mount=type=secret,id=token " + random, false},
			"secret-in-environment": {"RUN --mount=type=secret,id=token,env=T " + random, false},
			"later-than-a-secret":   {"RUN --mount=type=secret,id=token true\nRUN " + random, false},
			"takes-secret":          {"COPY --from=secret /x /x", false},
			"sees-plain":            {"COPY --from=plain /x /y\nRUN " + random, true},
		}
		var stages, copies []string
		for _, name := range slices.Sorted(maps.Keys(steps)) {
			stages = append(stages, "FROM "+imagetest.BaseImage+" AS "+name, unique, steps[name].step)
			copies = append(copies, "COPY --from="+name+" /x /out/"+name)
		}
		out := func(org string) map[string]string {
			src := recipe(org)
			file := strings.Join(slices.Concat(stages, []string{"FROM scratch"}, copies), "\n")
			if err := os.WriteFile(filepath.Join(src.Dir, "Dockerfile"), []byte(file), 0o644); err != nil {
				t.Fatal(err)
			}
			_, files := build(t, b, src, kiln.DiscardProgress)
			return files
		}
		ours, again, theirs := out("org_ours"), out("org_ours"), out("org_theirs")
		for name, tc := range steps {
			path := "out/" + name
			if ours[path] == "" || again[path] != ours[path] {
				t.Errorf("%s: an organisation does not share with itself", name)
			}
			if shared := ours[path] == theirs[path]; shared != tc.shared {
				t.Errorf("%s: shared %v, want %v", name, shared, tc.shared)
			}
		}
	})
	t.Run("the content of a cache", func(t *testing.T) {
		mount := "--mount=type=cache,target=/c,id=" + b32(t)
		build(t, b, recipe("org_ours", "RUN "+mount+" echo ours > /c/x"), kiln.DiscardProgress)
		get := func(org string, args map[string]string) string {
			src := recipe(org, "RUN "+mount+" echo found $(cat /c/x) > /out/x", "ENV X="+fmt.Sprint(args))
			src.Options.Args = args
			_, files := build(t, b, src, kiln.DiscardProgress)
			return files["out/x"]
		}
		if got := get("org_ours", nil); got != "found ours\n" {
			t.Errorf("the owner: %q", got)
		}
		if got := get("org_theirs", nil); got != "found\n" {
			t.Errorf("another organisation: %q", got)
		}
		if got := get("org_theirs", map[string]string{"BUILDKIT_CACHE_MOUNT_NS": "org_ours"}); got != "found\n" {
			t.Errorf("another organisation that names its owner: %q", got)
		}
	})
	t.Run("the value of a secret", func(t *testing.T) { testSecretOfAnother(t, b) })
}

// testSecretOfAnother builds a recipe with a secret, and for another organisation without.
func testSecretOfAnother(t *testing.T, b *image.Builder) {
	t.Helper()
	src := imagetest.Source(t, map[string]string{"Dockerfile": "FROM " + imagetest.BaseImage + "\nRUN mkdir /out; echo " + b32(t) + `
RUN --mount=type=secret,id=token cp /run/secrets/token /out/x || echo none > /out/x; ls /run/secrets > /out/seen || true
`})
	src.OrgID, src.Options.Secrets = "org_ours", map[string][]byte{"token": []byte("value")}
	if _, files := build(t, b, src, kiln.DiscardProgress); files["out/x"] != "value" || files["out/seen"] != "token\n" {
		t.Errorf("the owner: %q", files)
	}
	src.OrgID, src.Options.Secrets = "org_theirs", nil
	if _, files := build(t, b, src, kiln.DiscardProgress); files["out/x"] != "none\n" {
		t.Errorf("another organisation: %q", files)
	}
}

// b32 returns a name that no other test uses.
func b32(t *testing.T) string { return kiln.DigestOf([]byte(t.TempDir())).Hex()[:32] }

// TestHazard27KeysOfOrganisations: what their secrets and caches have a part in is their own.
func TestHazard27KeysOfOrganisations(t *testing.T) {
	b := imagetest.Builder(t)
	dockerfile := func(lines string) kiln.Source {
		return imagetest.Source(t, map[string]string{"Dockerfile": "FROM " + imagetest.BaseImage + "\n" + lines})
	}
	plain := dockerfile("RUN true\n")
	bases, err := b.Resolve(t.Context(), plain, kiln.DiscardProgress)
	if err != nil {
		t.Fatal(err)
	}
	with := dockerfile("run --network=none --MOUNT=type=cache,target=/c true\n")
	late := dockerfile("RUN \\\n  --mo\\\nunt=type=cache,target=/c true\n")
	key := func(src kiln.Source, org string, secrets ...string) kiln.Digest {
		src.OrgID, src.Digest = org, "" // as if they were the same
		for _, id := range secrets {
			if src.Options.Secrets == nil {
				src.Options.Secrets = map[string][]byte{}
			}
			src.Options.Secrets[id] = []byte(org) // values are part of no key
		}
		return b.Key(src, bases)
	}
	public := key(plain, "org_a")
	if key(plain, "org_b") != public || key(plain, "") != public {
		t.Error("a recipe without mounts is not shared")
	}
	seen := map[kiln.Digest]string{public: "without secrets and mounts"}
	for name, k := range map[string]kiln.Digest{
		"a secret of a":       key(plain, "org_a", "x"),
		"the secret of b":     key(plain, "org_b", "x"),
		"another secret of a": key(plain, "org_a", "y"),
		"secrets of a":        key(plain, "org_a", "x", "y"),
		"a secret of nobody":  key(plain, "", "x"),
		"a mount of a":        key(with, "org_a"),
		"the mount of b":      key(with, "org_b"),
	} {
		if other, taken := seen[k]; taken {
			t.Errorf("%s has the key of %s", name, other)
		}
		seen[k] = name
	}
	if key(late, "org_a") == public {
		t.Error("a mount in several lines is not seen")
	}
}
