package testkit

import "os"

// Rounds returns how often a test repeats something: quick times, or soak times under
// `make soak` (KILN_SOAK=1).
func Rounds(quick, soak int) int {
	if os.Getenv("KILN_SOAK") == "1" {
		return soak
	}
	return quick
}
