package server

import (
	"context"
	"iter"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/artifact"
	"github.com/kilnvm/kiln/internal/rootfs"
)

// entries is a root filesystem without content.
type entries []kiln.Entry

func (s entries) Entries() iter.Seq2[kiln.Entry, error] {
	return func(yield func(kiln.Entry, error) bool) {
		for _, e := range s {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (entries) Close() error { return nil }

// numbered resolves name@N to the version N.
type numbered []*kiln.Version

func (n numbered) ResolveTemplate(_ context.Context, _ string, ref kiln.TemplateRef) (*kiln.Template, *kiln.Version, error) {
	t := &kiln.Template{Name: ref.NameOrID}
	if ref.Version == 0 {
		return t, nil, nil
	}
	return t, n[ref.Version-1], nil
}

func TestDiffOfVersions(t *testing.T) {
	blobs, err := artifact.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := func(path string, mode uint32) kiln.Entry {
		return kiln.Entry{Path: path, Type: kiln.TypeDirectory, Mode: mode}
	}
	var versions numbered
	for i, src := range []entries{
		{dir("etc", 0o755), dir("gone", 0o755), {Path: "same", Type: kiln.TypeFIFO}},
		{dir("etc", 0o700), dir("new\xff", 0o755), {Path: "same", Type: kiln.TypeFIFO}},
	} {
		file := filepath.Join(t.TempDir(), "image")
		res, err := rootfs.Write(t.Context(), src, file)
		if err != nil {
			t.Fatal(err)
		}
		if err := blobs.Adopt(t.Context(), file, res.Blob); err != nil {
			t.Fatal(err)
		}
		versions = append(versions, &kiln.Version{Number: i + 1, Rootfs: res.Blob})
	}
	lost := versions[1].Rootfs
	lost.Digest = kiln.DigestOf([]byte("lost"))
	versions = append(versions, &kiln.Version{Number: 3, Rootfs: lost})
	d := diffs{versions, blobs}
	ref := func(n int) kiln.TemplateRef { return kiln.TemplateRef{NameOrID: "my-ml", Version: n} }

	got, err := d.Diff(t.Context(), "org", ref(1), ref(2))
	if err != nil {
		t.Fatal(err)
	}
	if got.A != (api.RootfsOf{Template: "my-ml", Version: 1, Digest: versions[0].Rootfs.Digest}) || got.B.Version != 2 {
		t.Errorf("compared %+v and %+v", got.A, got.B)
	}
	want := []api.RootfsDifference{
		{Path: "etc", Field: "mode", A: "0755", B: "0700"},
		{Path: "gone", Field: "entry", A: "directory", B: "absent"},
		{Path: `"new\xff"`, Field: "entry", A: "absent", B: "directory"},
	}
	if !slices.Equal(got.Differences, want) {
		t.Errorf("differences: %+v", got.Differences)
	}
	if same, err := d.Diff(t.Context(), "org", ref(1), ref(1)); err != nil || len(same.Differences) != 0 {
		t.Errorf("a version and itself: %+v, %v", same, err)
	}
	for n, code := range map[int]kiln.ErrorCode{0: kiln.CodeConflict, 3: kiln.CodeUnavailable} {
		if _, err := d.Diff(t.Context(), "org", ref(1), ref(n)); kiln.CodeOf(err) != code {
			t.Errorf("version %d: %v, want %s", n, err, code)
		}
	}
}
