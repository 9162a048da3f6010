package test

import (
	"bufio"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	hazardRow  = regexp.MustCompile(`^\| ([0-9]+) \|`)
	hazardName = regexp.MustCompile(`TestHazard[0-9]{2}\w*`)
	hazardFunc = regexp.MustCompile(`^func (TestHazard\w+)\(t \*testing\.T\)`)
	hazardOf   = regexp.MustCompile(`Hazard([0-9]{2})`)
)

// TestHazards holds docs/hazards.md against the suite: every promise has a test that is
// named after it, and every test that is named after a promise stands with it.
func TestHazards(t *testing.T) {
	rows := hazardRows(t)
	var want []string
	for first, last := range map[int]int{1: 12, 20: 27, 40: 42} {
		for n := first; n <= last; n++ {
			want = append(want, twoDigits(n))
		}
	}
	slices.Sort(want)
	if have := slices.Sorted(maps.Keys(rows)); !slices.Equal(have, want) {
		t.Errorf("the table has the rows %v, want %v", have, want)
	}
	tests := hazardTests(t)
	for number, listed := range rows {
		if len(listed) == 0 {
			t.Errorf("row %s names no test", number)
		}
		for _, name := range listed {
			if !slices.Contains(tests[number], name) {
				t.Errorf("row %s names %s, which the module does not have under that number", number, name)
			}
		}
	}
	for number, names := range tests {
		for _, name := range names {
			if !slices.Contains(rows[number], name) {
				t.Errorf("%s is missing in row %s of docs/hazards.md", name, number)
			}
		}
	}
}

// hazardRows returns the tests that the document names, by the number of their row.
func hazardRows(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../docs/hazards.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		if row := hazardRow.FindStringSubmatch(line); row != nil {
			number := row[1]
			if len(number) == 1 {
				number = "0" + number
			}
			if _, twice := rows[number]; twice {
				t.Errorf("row %s stands there twice", number)
			}
			rows[number] = hazardName.FindAllString(line, -1)
		}
	}
	return rows
}

// hazardTests returns the tests of the module that are named after a row.
func hazardTests(t *testing.T) map[string][]string {
	t.Helper()
	tests := map[string][]string{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != ".." && strings.HasPrefix(d.Name(), "."):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if found := hazardFunc.FindStringSubmatch(lines.Text()); found != nil {
				for _, row := range hazardOf.FindAllStringSubmatch(found[1], -1) {
					tests[row[1]] = append(tests[row[1]], found[1])
				}
			}
		}
		return lines.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	return tests
}

func twoDigits(n int) string { return string([]byte{byte('0' + n/10), byte('0' + n%10)}) }
