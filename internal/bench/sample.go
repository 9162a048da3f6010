package bench

import (
	"encoding/json"
	"slices"
	"time"
)

// Sample is a set of measured durations.
type Sample []time.Duration

// Add appends d.
func (s *Sample) Add(d time.Duration) { *s = append(*s, d) }

// Quantile returns the least duration in the sample that percent of it do not exceed, which
// is called the nearest rank; 0 for an empty sample.
func (s Sample) Quantile(percent int) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[max((len(sorted)*percent+99)/100, 1)-1]
}

// MarshalJSON writes what of the sample is of use to others.
func (s Sample) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		N     int     `json:"n"`
		MinMS float64 `json:"min_ms"`
		P50MS float64 `json:"p50_ms"`
		P99MS float64 `json:"p99_ms"`
	}{len(s), ms(s.Quantile(0)), ms(s.Quantile(50)), ms(s.Quantile(99))})
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// ratio returns a/b, or 0 if b is nothing.
func ratio(a, b time.Duration) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}
