package kiln_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
)

func TestParseDigest(t *testing.T) {
	good := string(kiln.DigestOf(nil))
	if _, err := kiln.ParseDigest(good); err != nil {
		t.Errorf("ParseDigest(%q): %v", good, err)
	}
	for _, bad := range []string{"", "sha256:", good[:len(good)-1], strings.ToUpper(good), "md5:" + good[7:], good[:len(good)-1] + "g"} {
		if d, err := kiln.ParseDigest(bad); err == nil {
			t.Errorf("ParseDigest(%q) = %q, want an error", bad, d)
		}
	}
}

// A separator that a value may contain would let two different lists of parts collide.
func TestKeysDoNotCollide(t *testing.T) {
	key := func() *kiln.KeyBuilder { return kiln.NewKey(kiln.StageImage, 1) }
	keys := map[string]kiln.Digest{
		"nothing":       key().Key(),
		"a=b":           key().Add("a", "b").Key(),
		"ab=":           key().Add("ab", "").Key(),
		"=ab":           key().Add("", "ab").Key(),
		"two parts":     key().Add("a", "b").Add("c", "d").Key(),
		"one long part": key().Add("a", "bcd").Key(),
		"list":          key().AddList("l", []string{"x", "y"}).Key(),
		"joined list":   key().AddList("l", []string{"xy"}).Key(),
		"map":           key().AddMap("l", map[string]string{"x": "y"}).Key(),
		"other stage":   kiln.NewKey(kiln.StageRootfs, 1).Key(),
		"other format":  kiln.NewKey(kiln.StageImage, 2).Key(),
	}
	seen := map[kiln.Digest]string{}
	for name, k := range keys {
		if other, ok := seen[k]; ok {
			t.Errorf("%q and %q have one key", name, other)
		}
		seen[k] = name
	}
}

func TestMapOrderDoesNotChangeKeys(t *testing.T) {
	m := map[string]string{"a": "1", "b": "2", "c": "3", "d": "4", "e": "5"}
	want := kiln.NewKey(kiln.StageImage, 1).AddMap("args", m).Key()
	for range 50 {
		if got := kiln.NewKey(kiln.StageImage, 1).AddMap("args", m).Key(); got != want {
			t.Fatal("the key of one map differs between two computations")
		}
	}
}

// noPartOfSnapshot are the fields that no snapshot depends on: they are names, or hold from
// the moment a clone starts, or nothing in a VM reads them.
var noPartOfSnapshot = []string{
	"VMSpec.Rootfs.Size", "VMSpec.Rootfs.Role", "VMSpec.Size.CPUWeight", "VMSpec.Size.CPUPercent",
	"VMSpec.Config.Entrypoint", "VMSpec.Config.Cmd", "VMSpec.Config.ExposedPorts", "VMSpec.Config.Labels",
	"VMSpec.PostRestore", "VMSpec.Disk.BandwidthMBps", "VMSpec.Disk.OpsPerSec", "VMSpec.Disk.BurstMBps", "VMSpec.Disk.BurstOps",
}

// Everything a snapshot depends on changes its key, and nothing else does. A new field is
// part of the key or listed above.
func TestSnapshotKeyCoversEveryInput(t *testing.T) {
	var key kiln.SnapshotKey
	want := key.Digest()
	var left []string
	eachField(t, reflect.ValueOf(&key).Elem(), "", func(path string, field reflect.Value) {
		was := reflect.New(field.Type()).Elem()
		was.Set(field)
		change(t, path, field)
		if key.Digest() == want {
			left = append(left, path)
		}
		field.Set(was)
	})
	slices.Sort(left)
	if listed := slices.Sorted(slices.Values(noPartOfSnapshot)); !slices.Equal(left, listed) {
		t.Errorf("no part of the key: %q\nshould be:          %q", left, listed)
	}
}

// eachField calls f with every field of v that is not a structure itself.
func eachField(t *testing.T, v reflect.Value, path string, f func(path string, field reflect.Value)) {
	t.Helper()
	for i := range v.NumField() {
		field, name := v.Field(i), strings.TrimPrefix(path+"."+v.Type().Field(i).Name, ".")
		if field.Kind() == reflect.Struct {
			eachField(t, field, name, f)
			continue
		}
		f(name, field)
	}
}

// change gives a field another value than its zero value.
func change(t *testing.T, path string, field reflect.Value) {
	t.Helper()
	switch field.Kind() {
	case reflect.String:
		field.SetString("x")
	case reflect.Int, reflect.Int64:
		field.SetInt(7)
	case reflect.Bool:
		field.SetBool(true)
	case reflect.Slice:
		field.Set(reflect.MakeSlice(field.Type(), 1, 1))
	case reflect.Map:
		field.Set(reflect.ValueOf(map[string]string{"x": "y"}))
	default:
		t.Fatalf("%s: how is a %s changed?", path, field.Kind())
	}
}
