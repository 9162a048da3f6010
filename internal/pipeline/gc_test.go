package pipeline

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/gc"
)

// TestGarbageCollectionAgainstBuilds collects without pause while versions are built,
// rebuilt without change and baked: whatever is ready afterwards and not given up is whole.
func TestGarbageCollectionAgainstBuilds(t *testing.T) {
	r := newRig(t, dataDir(t), nil)
	size, err := kiln.SizeByName(kiln.DefaultSizeName)
	if err != nil {
		t.Fatal(err)
	}
	key := func(v *kiln.Version) kiln.Digest { return r.opts.Snapshots.Key(v.VMSpec(size)) }
	c, err := gc.New(gc.Options{
		Store: r.store, Blobs: r.opts.Blobs, Logs: r.Service, Policy: gc.Policy{Keep: 1, SandboxHistory: time.Hour, AuditHistory: time.Hour},
		SnapshotKey: func(v *kiln.Version, _ string) (kiln.Digest, error) { return key(v), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	stop, collected := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			report, err := c.Run(t.Context(), false)
			if err != nil {
				t.Error(err)
			}
			n += len(report.Items)
			select {
			case <-stop:
				collected <- n
				return
			default:
			}
		}
	}()
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			for n := range 8 {
				// Every other build changes nothing but the metadata, so that it takes what
				// the one before has made.
				f := files{"a": fmt.Sprint(i, n/2), "kiln-template.toml": fmt.Sprintf("description = %q\n", fmt.Sprint(n))}
				r.ready(t, r.create(t, fmt.Sprintf("t%d", i), f))
			}
		})
	}
	wg.Wait()
	close(stop)
	if n := <-collected; n == 0 {
		t.Error("nothing was collected")
	}
	for i := range 3 {
		tmpl, versions, err := r.Get(t.Context(), org, fmt.Sprintf("t%d", i))
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range versions {
			if v.Status != kiln.VersionReady || !v.CollectedAt.IsZero() {
				continue
			}
			if err := r.opts.Blobs.Verify(t.Context(), v.Rootfs); err != nil {
				t.Errorf("%s@%d: %v", tmpl.Name, v.Number, err)
			}
			snap, err := r.store.Snapshot(t.Context(), key(v))
			if err != nil {
				t.Errorf("%s@%d: %v", tmpl.Name, v.Number, err)
				continue
			}
			for _, b := range []kiln.Blob{snap.Memory, snap.VMState, snap.Scratch} {
				if err := r.opts.Blobs.Verify(t.Context(), b); err != nil {
					t.Errorf("%s@%d: %s: %v", tmpl.Name, v.Number, b.Role, err)
				}
			}
		}
	}
	r.tidy(t)
}
