package main

import (
	"github.com/spf13/pflag"

	"github.com/kilnvm/kiln"
)

// limitFlags bound the disk traffic of a sandbox.
type limitFlags struct{ kiln.DiskLimits }

func (f *limitFlags) add(flags *pflag.FlagSet) {
	flags.IntVar(&f.BandwidthMBps, "bandwidth-mbps", 0, "disk traffic of a sandbox in MiB per second (default no limit)")
	flags.IntVar(&f.OpsPerSec, "ops-per-sec", 0, "disk operations of a sandbox per second (default no limit)")
	flags.IntVar(&f.BurstMBps, "burst-mbps", 0, "disk traffic for up to a second after a pause")
	flags.IntVar(&f.BurstOps, "burst-ops", 0, "disk operations for up to a second after a pause")
}
