package store_test

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/store"
	"github.com/kilnvm/kiln/internal/testkit"
)

// BenchmarkTenThousandTemplates measures, among 10,000 templates of one organisation and
// as many of another, pages of the list and the resolution of a reference.
func BenchmarkTenThousandTemplates(b *testing.B) {
	b.Run("sqlite", func(b *testing.B) { benchmarkTemplates(b, open(b, filepath.Join(b.TempDir(), "kiln.db"))) })
	b.Run("postgres", func(b *testing.B) { benchmarkTemplates(b, openPostgres(b, testkit.StartPostgres(b).Database(b))) })
}

func benchmarkTemplates(b *testing.B, s *store.Store) {
	const templates = 10_000
	for i := range templates {
		for _, org := range []string{"o", "p"} {
			t := &kiln.Template{ID: kiln.NewTemplateID(), OrgID: org, Name: fmt.Sprintf("t%05d", i)}
			v := &kiln.Version{TemplateID: t.ID, BuildID: kiln.NewID("b_")}
			if i%100 == 0 {
				v.Metadata.Tags = []string{"rare"}
				t.Tags = v.Metadata.Tags
			}
			if err := s.CreateTemplate(b.Context(), t, v, store.Build{}, nil); err != nil {
				b.Fatal(err)
			}
		}
	}
	if conns := s.Postgres(); conns != nil { // as the database does by itself within a minute
		if _, err := conns.Exec(b.Context(), "ANALYZE"); err != nil {
			b.Fatal(err)
		}
	}
	page := func(f store.Filter) func(context.Context, int) error {
		return func(ctx context.Context, n int) error {
			list, _, err := s.ListTemplates(ctx, "o", f, &store.Cursor{Name: fmt.Sprintf("t%05d", n*7919%9000)}, 50)
			if err == nil && len(list) == 0 {
				err = fmt.Errorf("an empty page")
			}
			return err
		}
	}
	for _, c := range []struct {
		name string
		op   func(ctx context.Context, n int) error
	}{
		{"page", page(store.Filter{})},
		{"page-of-status", page(store.Filter{Status: kiln.VersionPending})},
		{"page-of-rare-tag", page(store.Filter{Tag: "rare"})},
		{"resolve", func(ctx context.Context, n int) error {
			_, _, err := s.ResolveTemplate(ctx, "o", kiln.TemplateRef{NameOrID: fmt.Sprintf("t%05d", n*7919%templates)})
			return err
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			var times []time.Duration
			for b.Loop() {
				start := time.Now()
				if err := c.op(b.Context(), len(times)); err != nil {
					b.Fatal(err)
				}
				times = append(times, time.Since(start))
			}
			slices.Sort(times)
			b.ReportMetric(float64(times[len(times)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-µs")
		})
	}
}
