package kiln

// Kinds of garbage.
const (
	GarbageVersion  = "version"
	GarbageSnapshot = "snapshot"
	GarbageCache    = "cache"
	GarbageBlob     = "blob"
	GarbageLog      = "log"
	GarbageSandbox  = "sandbox"
	GarbageAudit    = "audit"
)

// Garbage is one thing that nothing refers to any more.
type Garbage struct {
	Kind  string `json:"kind" enum:"version,snapshot,cache,blob,log,sandbox"`
	Name  string `json:"name"`
	Why   string `json:"why,omitempty"`
	Bytes int64  `json:"bytes" doc:"Disk space that becomes free"`
}

// GarbageReport is what a garbage collection removed, or would remove.
type GarbageReport struct {
	DryRun bool      `json:"dry_run"`
	Items  []Garbage `json:"items" nullable:"false"`
	Bytes  int64     `json:"bytes" doc:"Disk space that becomes free"`
}

// Add adds one thing.
func (r *GarbageReport) Add(g Garbage) {
	r.Items = append(r.Items, g)
	r.Bytes += g.Bytes
}
