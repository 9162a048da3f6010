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
