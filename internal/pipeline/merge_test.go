package pipeline

import (
	"testing"

	"github.com/kilnvm/kiln"
)

// Limits of a request complete those of the file, and are checked together.
func TestLimitsOverTheFile(t *testing.T) {
	file := kiln.Metadata{Limits: kiln.DiskLimits{BandwidthMBps: 200}}
	for _, c := range []struct {
		over, want kiln.DiskLimits
		code       kiln.ErrorCode
	}{
		{over: kiln.DiskLimits{OpsPerSec: 5000}, want: kiln.DiskLimits{BandwidthMBps: 200, OpsPerSec: 5000}},
		{over: kiln.DiskLimits{BurstMBps: 400}, want: kiln.DiskLimits{BandwidthMBps: 200, BurstMBps: 400}},
		{over: kiln.DiskLimits{BurstMBps: 100}, code: kiln.CodeInvalid},
		{over: kiln.DiskLimits{BurstOps: 100}, code: kiln.CodeInvalid},
	} {
		m, err := mergeMetadata(file, kiln.Metadata{Limits: c.over})
		if kiln.CodeOf(err) != c.code || m.Limits != c.want {
			t.Errorf("%+v: %+v, %v", c.over, m.Limits, err)
		}
	}
}
