package nestedhost

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
)

// A test that fails is repeated, alone, and has failed if it fails again.
func TestWhatFailsIsRepeated(t *testing.T) {
	const first = `=== RUN   TestA
--- FAIL: TestA (2.00s)
    --- PASS: TestA/fine (1.00s)
    --- FAIL: TestA/b.c (1.00s)
        --- FAIL: TestA/b.c/d (1.00s)
--- FAIL: TestE (1.00s)
--- PASS: TestF (1.00s)`
	const repeated = "-test.run=^TestA$/^b\\.c$/^d$|^TestE$"
	const passes = "--- PASS: TestA (1s)\n    --- PASS: TestA/b.c (1s)\n        --- PASS: TestA/b.c/d (1s)\n--- PASS: TestE (1s)"
	fails := errors.New("exit code 1")
	for name, c := range map[string]struct {
		outputs []string // of one run after the other, all of which but the last fail
		last    error    // of the last
		passed  []string // in the end, if nothing has failed
	}{
		"passes":          {[]string{"--- PASS: TestF (1s)"}, nil, []string{"TestF"}},
		"passes then":     {[]string{first, passes}, nil, []string{"TestA", "TestA/b.c", "TestA/b.c/d", "TestA/fine", "TestE", "TestF"}},
		"fails again":     {[]string{first, "--- FAIL: TestE (1s)"}, fails, nil},
		"is not repeated": {[]string{first, "testing: warning: no tests to run"}, nil, nil},
		"names no test":   {[]string{"panic: test timed out after 20m0s"}, fails, nil},
	} {
		t.Run(name, func(t *testing.T) {
			runs := 0
			r, err := twice(t.Logf, func(more ...string) (report, error) {
				if want := []string{repeated}; runs > 0 && !slices.Equal(more, want) {
					t.Errorf("repeated with %q, want %q", more, want)
				}
				runs++
				if runs < len(c.outputs) {
					return read(strings.Split(c.outputs[runs-1], "\n")), fails
				}
				return read(strings.Split(c.outputs[runs-1], "\n")), c.last
			})
			if (err == nil) != (c.passed != nil) || runs != len(c.outputs) {
				t.Errorf("%d runs, then %v", runs, err)
			}
			if passed := slices.Sorted(maps.Keys(r.passed)); err == nil && !slices.Equal(passed, c.passed) {
				t.Errorf("passed: %q, want %q", passed, c.passed)
			}
		})
	}
}
