package kiln

import (
	"strings"
	"testing"
)

func TestCutQuotes(t *testing.T) {
	long := strings.Repeat("x", 81)
	for message, want := range map[string]string{
		`template "a" is not "b"`:            `template "a" is not "b"`,
		`template "` + long + `" is`:         `template "` + long[:80] + `…" is`,
		`"` + long[:80] + `" fits`:           `"` + long[:80] + `" fits`,
		`"a" and ` + long + ` and "b"`:       `"a" and ` + long + ` and "b"`,
		`"` + strings.Repeat(`\"`, 90) + `"`: `"` + strings.Repeat(`\"`, 80) + `…"`,
	} {
		if got := CutQuotes(message); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", message, got, want)
		}
	}
}
