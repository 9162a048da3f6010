package kiln

// DiskLimits bounds the disk traffic of one sandbox, reads and writes of all its disks
// together. Zero fields mean: unlimited.
type DiskLimits struct {
	BandwidthMBps int `json:"bandwidth_mbps,omitempty"` // MiB per second
	OpsPerSec     int `json:"ops_per_sec,omitempty"`
	// BurstMBps and BurstOps are allowed instead for up to a second after a pause. They
	// mean nothing without the limit that they extend.
	BurstMBps int `json:"burst_mbps,omitempty"`
	BurstOps  int `json:"burst_ops,omitempty"`
}

// Limited reports whether there is any limit.
func (l DiskLimits) Limited() bool { return l.BandwidthMBps > 0 || l.OpsPerSec > 0 }

// Over returns l, completed by what under says where l says nothing. A limit comes with its
// own burst, since that means nothing beside another limit; a burst alone extends the limit
// of under.
func (l DiskLimits) Over(under DiskLimits) DiskLimits {
	for _, f := range []struct {
		limit, burst           *int
		underLimit, underBurst int
	}{
		{&l.BandwidthMBps, &l.BurstMBps, under.BandwidthMBps, under.BurstMBps},
		{&l.OpsPerSec, &l.BurstOps, under.OpsPerSec, under.BurstOps},
	} {
		if *f.limit != 0 {
			continue
		}
		*f.limit = f.underLimit
		if *f.burst == 0 {
			*f.burst = f.underBurst
		}
	}
	return l
}

// maxDiskLimit is far above what any disk does.
const maxDiskLimit = 1 << 20

// CheckDiskLimit returns an [Error] when no limit has this value.
func CheckDiskLimit(value int) error {
	if value < 0 || value > maxDiskLimit {
		return Errorf(CodeInvalid, "%d is not between 0 and %d", value, maxDiskLimit)
	}
	return nil
}

// Validate returns the first fault as an [Error] that names the limit.
func (l DiskLimits) Validate() error {
	for _, f := range []struct {
		name         string
		value, below int // below: the limit that it extends, -1 for none
	}{
		{"bandwidth_mbps", l.BandwidthMBps, -1}, {"ops_per_sec", l.OpsPerSec, -1},
		{"burst_mbps", l.BurstMBps, l.BandwidthMBps}, {"burst_ops", l.BurstOps, l.OpsPerSec},
	} {
		if err := CheckDiskLimit(f.value); err != nil {
			return Errorf(CodeInvalid, "disk limit %s: %w", f.name, err)
		}
		switch {
		case f.value > 0 && f.below == 0:
			return Errorf(CodeInvalid, "disk limit %s without the limit that it extends", f.name).
				WithHint("burst_mbps goes with bandwidth_mbps, burst_ops with ops_per_sec")
		case f.value > 0 && f.value < f.below:
			return Errorf(CodeInvalid, "disk limit %s: %d is less than the limit that it extends, %d", f.name, f.value, f.below)
		}
	}
	return nil
}

// Quota is what the owner of a template may change without a build. Zero fields leave what
// the version says.
type Quota struct {
	DiskMB int        `json:"disk_size_mb,omitempty"` // writable disk of new sandboxes
	Limits DiskLimits `json:"limits,omitzero"`
}

// Apply returns the version with the quota over its metadata.
func (q Quota) Apply(v *Version) *Version {
	c := *v
	if q.DiskMB > 0 {
		c.Metadata.DiskMB = q.DiskMB
	}
	c.Metadata.Limits = q.Limits.Over(c.Metadata.Limits)
	return &c
}
