package bench

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"
)

func TestQuantiles(t *testing.T) {
	var s Sample
	for _, n := range []int{5, 1, 4, 2, 3} {
		s.Add(time.Duration(n) * time.Millisecond)
	}
	for percent, want := range map[int]time.Duration{0: 1, 20: 1, 21: 2, 50: 3, 80: 4, 81: 5, 99: 5, 100: 5} {
		if got := s.Quantile(percent); got != want*time.Millisecond {
			t.Errorf("quantile %d is %s, want %d ms", percent, got, want)
		}
	}
	if got := Sample(nil).Quantile(50); got != 0 {
		t.Errorf("quantile of nothing is %s", got)
	}
}

func TestReport(t *testing.T) {
	bare, restore := Sample{10 * time.Millisecond}, Sample{20 * time.Millisecond}
	r := &Report{Name: "boot"}
	r.row("bare", bare, bare.Quantile(50))
	r.row("restore", restore, bare.Quantile(50))
	r.row("not measured", nil, bare.Quantile(50))
	r.ratio("restore / bare", restore.Quantile(50), bare.Quantile(50), 2.5, false)
	r.ratio("restore / bare, at least", restore.Quantile(50), bare.Quantile(50), 2.5, true)
	r.ratio("not measured", 0, bare.Quantile(50), 1, false)

	var table strings.Builder
	if err := r.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"20.0", "2.00", "≤ 2.5 | yes", "≥ 2.5 | no"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, table.String())
		}
	}
	if strings.Contains(table.String(), "not measured") {
		t.Errorf("the table has what was not measured:\n%s", table.String())
	}
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if want := `"took":{"n":1,"min_ms":20,"p50_ms":20,"p99_ms":20},"per_bare_qemu":2`; !strings.Contains(string(text), want) {
		t.Errorf("JSON %s lacks %s", text, want)
	}
}

func TestCatalogDocument(t *testing.T) {
	r := CatalogReport{Rows: []CatalogRow{
		{Template: "node", Base: "debian:12", Size: "shared-cpu-1x", Apparent: 3 << 20, Allocated: 1 << 20, Cold: 90 * time.Second, Restore: Sample{time.Second}, Said: "v22"},
		{Template: "rust", Failed: "exit code 1 || so"},
	}}
	var out strings.Builder
	if err := r.WriteDocument(&out, "a toaster"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a toaster", "380 MiB", "3 MiB", "90.0 s", "1000 ms", "`v22`", `exit code 1 \|\| so`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the document lacks %q:\n%s", want, out.String())
		}
	}
}

func TestParseStat(t *testing.T) {
	const line = "4242 (a) (b c) S 17 4242 4242 0 -1 4194560 1 2 3 4 250 50 9 9 20 0 1 0 100 1 1 1"
	pid, parent, ticks, err := parseStat(line)
	if err != nil || pid != 4242 || parent != 17 || ticks != 300 {
		t.Errorf("parseStat: %d, %d, %d, %v", pid, parent, ticks, err)
	}
	for _, bad := range []string{"", "1 a S", "1 (a) S 1", "x (a) S 1 1 1 1 1 1 1 1 1 1 1 1"} {
		if _, _, _, err := parseStat(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestTreeCPUNamesAMissingServer(t *testing.T) {
	if _, err := treeCPU(1 << 30); err == nil || !strings.Contains(err.Error(), "not on this host") {
		t.Errorf("error %v", err)
	}
	if _, err := treeCPU(os.Getpid()); err != nil {
		t.Error(err)
	}
}
