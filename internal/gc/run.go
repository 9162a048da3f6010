package gc

import (
	"context"
	"fmt"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/store"
)

// run is one pass. Its steps go from what refers to what is referred to.
type run struct {
	*Collector
	dry    bool
	report kiln.GarbageReport
	// gone are the versions that this pass gave up, or would give up.
	gone map[store.VersionRef]bool
	// stale are snapshots that a dry run would have taken from their last version.
	stale []kiln.Snapshot
}

// versions gives up the versions that nothing needs, and their logs.
func (r *run) versions(ctx context.Context) error {
	list, err := r.opts.Store.Collectable(ctx, r.opts.Policy.Keep)
	if err != nil {
		return err
	}
	for _, v := range list {
		if !r.dry {
			done, err := r.opts.Store.CollectVersion(ctx, v.VersionRef, r.opts.Policy.Keep)
			if err != nil {
				return err
			}
			if !done {
				continue // somebody has claimed it
			}
		}
		r.gone[v.VersionRef] = true
		r.report.Add(kiln.Garbage{Kind: kiln.GarbageVersion, Name: fmt.Sprintf("%s@%d", v.Template, v.Number), Why: v.Why})
		if size := r.opts.Logs.LogSize(v.BuildID); size > 0 {
			r.report.Add(kiln.Garbage{Kind: kiln.GarbageLog, Name: v.BuildID, Why: "of a version that is given up", Bytes: size})
		}
		if !r.dry {
			if err := r.opts.Logs.DropLog(v.BuildID); err != nil {
				return err
			}
		}
	}
	return nil
}

// rebaked takes snapshots from versions that have a newer one which sandboxes use instead.
// Only those whose files are here were made by this host, for itself.
func (r *run) rebaked(ctx context.Context) error {
	list, err := r.opts.Store.RebakedVersions(ctx)
	if err != nil {
		return err
	}
	for _, rebaked := range list {
		if r.gone[rebaked.VersionRef] {
			continue
		}
		v, err := r.opts.Store.Version(ctx, rebaked.TemplateID, rebaked.Number)
		if err != nil {
			return err
		}
		key, err := r.opts.SnapshotKey(v, rebaked.Size)
		if err != nil {
			return err
		}
		snaps, err := r.opts.Store.VersionSnapshots(ctx, rebaked.TemplateID, rebaked.Number)
		if err != nil {
			return err
		}
		if err := r.supersede(ctx, rebaked, snaps, key); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) supersede(ctx context.Context, v store.Rebaked, snaps []kiln.Snapshot, current kiln.Digest) error {
	var there bool
	var old []kiln.Snapshot
	for _, s := range snaps {
		switch {
		case s.SizeName != v.Size:
		case s.Key == current:
			there = true
		case r.opts.Blobs.Has(s.Memory):
			old = append(old, s)
		}
	}
	if !there {
		return nil
	}
	for _, s := range old {
		if r.dry {
			r.stale = append(r.stale, s)
			continue
		}
		if err := r.opts.Store.ForgetSnapshot(ctx, v.VersionRef, s.Key); err != nil {
			return err
		}
	}
	return nil
}

// snapshots forgets the snapshots that no version has.
func (r *run) snapshots(ctx context.Context) error {
	list, err := r.opts.Store.UnusedSnapshots(ctx, r.gone)
	if err != nil {
		return err
	}
	for _, s := range append(list, r.stale...) {
		if !r.dry {
			done, err := r.opts.Store.DropSnapshot(ctx, s.Key)
			if err != nil {
				return err
			}
			if !done {
				continue
			}
		}
		r.report.Add(kiln.Garbage{Kind: kiln.GarbageSnapshot, Name: s.Key.Short() + " " + s.SizeName, Why: "no version has it"})
	}
	return nil
}

// sandboxes forgets those that ended long ago.
func (r *run) sandboxes(ctx context.Context) error {
	before := time.Now().Add(-r.opts.Policy.SandboxHistory)
	n, err := r.opts.Store.CountEndedSandboxes(ctx, before)
	if err != nil || n == 0 {
		return err
	}
	r.report.Add(kiln.Garbage{Kind: kiln.GarbageSandbox, Name: fmt.Sprintf("%d rows", n), Why: "they ended long ago"})
	if r.dry {
		return nil
	}
	return r.opts.Store.DropEndedSandboxes(ctx, before)
}

// audit forgets changes of long ago.
func (r *run) audit(ctx context.Context) error {
	before := time.Now().Add(-r.opts.Policy.AuditHistory)
	n, err := r.opts.Store.CountOldAudit(ctx, before)
	if err != nil || n == 0 {
		return err
	}
	r.report.Add(kiln.Garbage{Kind: kiln.GarbageAudit, Name: fmt.Sprintf("%d events", n), Why: "they were recorded long ago"})
	if r.dry {
		return nil
	}
	return r.opts.Store.DropOldAudit(ctx, before)
}

// cacheAndBlobs removes what is mentioned nowhere.
func (r *run) cacheAndBlobs(ctx context.Context) error {
	sweep, err := r.opts.Blobs.BeginSweep() // before anything is read
	if err != nil {
		return err
	}
	defer sweep.End()
	used, err := r.opts.Store.References(ctx, r.gone)
	if err != nil {
		return err
	}
	for _, s := range r.stale {
		for _, b := range []kiln.Blob{s.Memory, s.VMState, s.Scratch} {
			delete(used, b.Digest) // a dry run only, and nothing else mentions them
		}
	}
	if err := r.cache(ctx, used); err != nil {
		return err
	}
	blobs, err := r.opts.Blobs.List()
	if err != nil {
		return err
	}
	for _, b := range blobs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if used[b.Digest] {
			continue
		}
		if !r.dry {
			removed, err := sweep.Remove(b.Digest)
			if err != nil {
				return err
			}
			if !removed {
				continue // somebody is about to use it
			}
		}
		r.report.Add(kiln.Garbage{Kind: kiln.GarbageBlob, Name: b.Digest.Short(), Why: "nothing refers to it", Bytes: b.Allocated})
	}
	return nil
}

// cache removes the entries that no kept version has used, and that name a blob which is
// not kept for another reason. The blobs of the others are used.
func (r *run) cache(ctx context.Context, used map[kiln.Digest]bool) error {
	entries, err := r.opts.Store.CacheEntries(ctx)
	if err != nil {
		return err
	}
	var unused []store.CacheEntry
	more := map[kiln.Digest]bool{}
	for _, e := range entries {
		if !used[e.Key] && !allUsed(used, e.Blobs) {
			unused = append(unused, e)
			continue
		}
		for _, d := range e.Blobs {
			more[d] = true
		}
	}
	for d := range more {
		used[d] = true
	}
	for _, e := range unused {
		r.report.Add(kiln.Garbage{Kind: kiln.GarbageCache, Name: string(e.Stage) + " " + e.Key.Short(), Why: "no version that is kept used it"})
		if r.dry {
			continue
		}
		if err := r.opts.Store.DropCacheEntry(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

// allUsed reports whether an entry names blobs and all of them are used.
func allUsed(used map[kiln.Digest]bool, blobs []kiln.Digest) bool {
	for _, d := range blobs {
		if !used[d] {
			return false
		}
	}
	return len(blobs) > 0
}
