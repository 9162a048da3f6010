package nestedhost

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// report is what a test program said of its tests.
type report struct {
	passed, failed map[string]bool
	skipped        []string
}

// read reads the output of a test program that was told to be verbose.
func read(output []string) report {
	r := report{passed: map[string]bool{}, failed: map[string]bool{}}
	for _, line := range output {
		verdict, rest, _ := strings.Cut(strings.TrimSpace(line), ": ")
		name, _, _ := strings.Cut(rest, " ")
		switch verdict {
		case "--- PASS":
			r.passed[name] = true
		case "--- FAIL":
			r.failed[name] = true
		case "--- SKIP":
			r.skipped = append(r.skipped, name)
		}
	}
	return r
}

// innermost returns the tests that failed without those that failed because a part of them
// did.
func (r report) innermost() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(r.failed)), func(name string) bool {
		for other := range r.failed {
			if strings.HasPrefix(other, name+"/") {
				return true
			}
		}
		return false
	})
}

// only returns the flag of a test program that selects these tests and no others.
func only(tests []string) string {
	patterns := make([]string, len(tests))
	for i, name := range tests {
		parts := strings.Split(name, "/")
		for j, part := range parts {
			parts[j] = "^" + regexp.QuoteMeta(part) + "$"
		}
		patterns[i] = strings.Join(parts, "/")
	}
	return "-test.run=" + strings.Join(patterns, "|")
}

// twice runs a test program and, once more, those of its tests that failed: the emulated
// processor's virtualisation is not exact, and rarely breaks a guest. What fails twice has
// failed, and so has a program that ended without naming a test that failed.
func twice(logf func(format string, args ...any), run func(more ...string) (report, error)) (report, error) {
	first, err := run()
	failed := first.innermost()
	if err == nil || len(failed) == 0 {
		return first, err
	}
	logf("FAILED ON THE NESTED HOST AND REPEATED ONCE, because emulated SVM is not exact (docs/decisions/0112): %s", strings.Join(failed, ", "))
	again, err := run(only(failed))
	for _, name := range failed {
		if err == nil && !again.passed[name] {
			err = fmt.Errorf("%s was not repeated", name)
		}
	}
	maps.Copy(again.passed, first.passed)
	again.skipped = append(again.skipped, first.skipped...)
	return again, err
}
