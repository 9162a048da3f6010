package kiln_test

import (
	"testing"

	"github.com/kilnvm/kiln"
)

func TestDiskLimitsOver(t *testing.T) {
	type limits = kiln.DiskLimits
	under := limits{BandwidthMBps: 200, BurstMBps: 400, OpsPerSec: 10}
	for _, c := range []struct{ over, want limits }{
		{limits{}, under},
		{limits{OpsPerSec: 50}, limits{BandwidthMBps: 200, BurstMBps: 400, OpsPerSec: 50}},
		{limits{BandwidthMBps: 500}, limits{BandwidthMBps: 500, OpsPerSec: 10}}, // the burst was of the other limit
		{limits{BurstMBps: 300}, limits{BandwidthMBps: 200, BurstMBps: 300, OpsPerSec: 10}},
		{limits{BurstOps: 20}, limits{BandwidthMBps: 200, BurstMBps: 400, OpsPerSec: 10, BurstOps: 20}},
		{limits{BandwidthMBps: 1, BurstMBps: 2, OpsPerSec: 3, BurstOps: 4}, limits{BandwidthMBps: 1, BurstMBps: 2, OpsPerSec: 3, BurstOps: 4}},
	} {
		if got := c.over.Over(under); got != c.want {
			t.Errorf("%+v: got %+v, want %+v", c.over, got, c.want)
		}
	}
}
