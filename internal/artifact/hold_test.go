package artifact_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/artifact"
)

func ingest(t *testing.T, ctx context.Context, b *artifact.Blobs, content string) kiln.Blob {
	t.Helper()
	blob, err := b.IngestReader(ctx, bytes.NewReader([]byte(content)), kiln.RoleSource, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

func beginSweep(t *testing.T, b *artifact.Blobs) *artifact.Sweep {
	t.Helper()
	s, err := b.BeginSweep()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSweepSparesWhatIsAboutToBeUsed(t *testing.T) {
	b, err := artifact.Open(filepath.Join(t.TempDir(), "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	free := ingest(t, ctx, b, "free")
	held, release := b.Hold(ctx)
	defer release()
	made := ingest(t, held, b, "made under a hold")
	checked := ingest(t, ctx, b, "checked under a hold")
	inner, releaseInner := b.Hold(held)
	if err := b.Check(inner, checked); err != nil {
		t.Fatal(err)
	}
	releaseInner() // what the inner one touched belongs to the outer one

	sweep := beginSweep(t, b)
	if _, err := b.BeginSweep(); err == nil {
		t.Error("two sweeps at once")
	}
	release() // its references are stored now, after the sweep may have read them
	late := ingest(t, ctx, b, "written during the sweep")
	seen := ingest(t, ctx, b, "free too")
	for blob, want := range map[kiln.Blob]bool{free: true, made: false, checked: false, late: false, seen: false} {
		removed, err := sweep.Remove(blob.Digest)
		if err != nil || removed != want || b.Has(blob) == want {
			t.Errorf("%s: removed %v, there %v, %v", blob.Digest.Short(), removed, b.Has(blob), err)
		}
	}
	sweep.End()
	release()
	release() // again is fine
	b.Touch(held, made.Digest)

	sweep = beginSweep(t, b)
	defer sweep.End()
	for _, blob := range []kiln.Blob{made, checked, late, seen} {
		if removed, err := sweep.Remove(blob.Digest); err != nil || !removed {
			t.Errorf("%s after the hold: removed %v, %v", blob.Digest.Short(), removed, err)
		}
	}
	if list, err := b.List(); err != nil || len(list) != 0 {
		t.Errorf("left %v, %v", list, err)
	}
}

// TestSweepAgainstCheck: whoever has seen a blob under a hold can open it, whatever a
// sweep does at the same moment.
func TestSweepAgainstCheck(t *testing.T) {
	b, err := artifact.Open(filepath.Join(t.TempDir(), "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		blob := ingest(t, t.Context(), b, "the same again")
		var wg sync.WaitGroup
		wg.Go(func() {
			sweep, err := b.BeginSweep()
			if err != nil {
				t.Error(err)
				return
			}
			defer sweep.End()
			if _, err := sweep.Remove(blob.Digest); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			ctx, release := b.Hold(t.Context())
			defer release()
			if b.Check(ctx, blob) != nil {
				return // the sweep came first
			}
			f, err := os.Open(b.Path(blob.Digest))
			if err != nil {
				t.Error(err)
				return
			}
			_ = f.Close()
		})
		wg.Wait()
	}
}

func TestListTellsAllocatedBytes(t *testing.T) {
	b, err := artifact.Open(filepath.Join(t.TempDir(), "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "sparse")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 64<<20); err != nil {
		t.Fatal(err)
	}
	blob, err := b.Ingest(t.Context(), path, kiln.RoleMemory)
	if err != nil {
		t.Fatal(err)
	}
	list, err := b.List()
	if err != nil || len(list) != 1 || list[0].Digest != blob.Digest || list[0].Allocated > 1<<20 {
		t.Errorf("list %+v, %v", list, err)
	}
}
