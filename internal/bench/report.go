package bench

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// Report is what one benchmark found out.
type Report struct {
	Name   string  `json:"name"`
	Rows   []Row   `json:"rows"`
	Ratios []Ratio `json:"ratios"`
}

// Row is one thing that was measured.
type Row struct {
	What string `json:"what"`
	Took Sample `json:"took"`
	// Bare is the median as a multiple of a bare QEMU's, or 0.
	Bare float64 `json:"per_bare_qemu,omitempty"`
}

// Ratio is a figure that has an aim, unless that is to be at least 0.
type Ratio struct {
	What  string  `json:"what"`
	Value float64 `json:"value"`
	Aim   float64 `json:"aim"`
	// AtLeast says on which side of the aim the value should be.
	AtLeast bool `json:"at_least,omitempty"`
}

// Met reports whether the value is what it should be.
func (r Ratio) Met() bool {
	if r.AtLeast {
		return r.Value >= r.Aim
	}
	return r.Value <= r.Aim
}

func (r *Report) row(what string, took Sample, bare time.Duration) {
	if len(took) > 0 {
		r.Rows = append(r.Rows, Row{What: what, Took: took, Bare: ratio(took.Quantile(50), bare)})
	}
}

// ratio notes a figure, unless one of its sides was not measured.
func (r *Report) ratio(what string, a, b time.Duration, aim float64, atLeast bool) {
	if a > 0 && b > 0 {
		r.Ratios = append(r.Ratios, Ratio{What: what, Value: ratio(a, b), Aim: aim, AtLeast: atLeast})
	}
}

// WriteTable writes the report for people, as Markdown.
func (r *Report) WriteTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	if len(r.Rows) > 0 {
		fmt.Fprintf(t, "| %s\t| n\t| min ms\t| p50 ms\t| p99 ms\t| p99/p50\t| p50 / bare QEMU\t|\n|---\t|---\t|---\t|---\t|---\t|---\t|---\t|\n", r.Name)
		for _, row := range r.Rows {
			p50, p99 := row.Took.Quantile(50), row.Took.Quantile(99)
			fmt.Fprintf(t, "| %s\t| %d\t| %.1f\t| %.1f\t| %.1f\t| %.2f\t| %s\t|\n", row.What, len(row.Took),
				ms(row.Took.Quantile(0)), ms(p50), ms(p99), ratio(p99, p50), orDash(row.Bare))
		}
		fmt.Fprintln(t)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(t, "| ratio\t| measured\t| aim\t| met\t|\n|---\t|---\t|---\t|---\t|\n")
	for _, x := range r.Ratios {
		sign, met := "≤", "no"
		if x.AtLeast {
			sign = "≥"
		}
		if x.Met() {
			met = "yes"
		}
		aim := fmt.Sprintf("%s %g", sign, x.Aim)
		if x.AtLeast && x.Aim == 0 {
			aim, met = "–", "–"
		}
		fmt.Fprintf(t, "| %s\t| %.2f\t| %s\t| %s\t|\n", x.What, x.Value, aim, met)
	}
	return t.Flush()
}

func orDash(v float64) string {
	if v == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", v)
}
