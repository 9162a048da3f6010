package bench

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// published is what another product says of its template of the same purpose: size of the
// root filesystem and time of a start, on hardware with KVM.
type published struct{ size, start string }

// pandaStack is the table in PandaStack's documentation of its bundled templates.
func pandaStack() map[string]published {
	return map[string]published{
		"blank": {"230 MiB", "280 ms"}, "code-interpreter": {"450 MiB", "240 ms"}, "python-data": {"920 MiB", "260 ms"},
		"node": {"380 MiB", "250 ms"}, "deno": {"280 MiB", "240 ms"}, "bun": {"290 MiB", "240 ms"}, "browser": {"1.2 GiB", "320 ms"},
		"rust": {"1.1 GiB", "270 ms"}, "go": {"480 MiB", "250 ms"}, "ruby": {"350 MiB", "250 ms"}, "java": {"720 MiB", "280 ms"},
	}
}

// WriteDocument writes the report as docs/catalog.md. machine says where it was measured.
func (r *CatalogReport) WriteDocument(w io.Writer, machine string) error {
	fmt.Fprintf(w, `# The built-in templates in figures

Written by `+"`kiln bench catalog --own`"+` on %s. [templates.md](templates.md) says what is in them.

`, machine)
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintf(t, "## Size and build\n\n")
	fmt.Fprintf(t, "| template\t| base\t| apparent\t| allocated\t| PandaStack\t| first build\t| of it image\t| of it bake\t| all cached\t| no change\t|\n%s", rule(10))
	theirs := pandaStack()
	for _, row := range r.Rows {
		fmt.Fprintf(t, "| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t|\n", row.Template, dash(row.Base), mib(row.Apparent), mib(row.Allocated),
			dash(theirs[row.Template].size), inSeconds(row.Cold), inSeconds(row.Image), inSeconds(row.Bake), inMS(row.Cached), inMS(row.NoChange))
	}
	fmt.Fprintf(t, "\n## Start\n\n")
	fmt.Fprintf(t, "| template\t| VM size\t| restores\t| to daemon p50\t| p99\t| PandaStack\t| first output p50\t| p99\t| smoke command p50\t| it says\t|\n%s", rule(10))
	for _, row := range r.Rows {
		said := "`" + row.Said + "`"
		if row.Failed != "" {
			said = "**failed**: " + row.Failed
		}
		fmt.Fprintf(t, "| %s\t| %s\t| %d\t| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t|\n", row.Template, dash(row.Size), len(row.Restore),
			inMS(row.Restore.Quantile(50)), p99(row.Restore), dash(theirs[row.Template].start),
			inMS(row.First.Quantile(50)), p99(row.First), inMS(row.Smoke.Quantile(50)), strings.ReplaceAll(said, "|", `\|`))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(w, `
*apparent* and *allocated* are the root filesystem's ext4 image, which holds holes for the sake of sharing; nothing is
stored twice for equal chunks in object storage. *first build* includes fetching or making the base image where it is not at hand
yet, and asking for the images that come before it in the list. *all cached* builds the same recipe under
another name with every stage found; *no change* builds that once more. *to daemon* is from the request to the first
answer of the daemon in the clone; *first output* from the request to the first byte that the smoke command prints; *smoke
command* is that command from start to end; *p99* of fewer than 100 is the largest. PandaStack's figures are those of its documentation, on KVM.
`)
	return err
}

func rule(columns int) string {
	out := "|"
	for range columns {
		out += "---\t|"
	}
	return out + "\n"
}

func mib(n int64) string {
	if n == 0 {
		return "–"
	}
	return fmt.Sprintf("%d MiB", (n+1<<20-1)>>20)
}

func inSeconds(d time.Duration) string {
	if d == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

func inMS(d time.Duration) string {
	if d == 0 {
		return "–"
	}
	return fmt.Sprintf("%.0f ms", ms(d))
}

// p99 shows the 99th percentile of a sample that is large enough to have a tail; of fewer
// than 100 it is the largest.
func p99(s Sample) string {
	if len(s) < 10 {
		return "–"
	}
	return inMS(s.Quantile(99))
}

func dash(s string) string {
	if s == "" {
		return "–"
	}
	return s
}
