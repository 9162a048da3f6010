package main

import (
	"fmt"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/image"
	"github.com/kilnvm/kiln/internal/image/imagetest"
	"github.com/kilnvm/kiln/internal/rootfs"
	"github.com/kilnvm/kiln/internal/rootfs/rootfstest"
)

// BenchmarkSharing measures how much of what two templates have in common is found again
// by fixed chunks, when the second is the first with a layer on top, and fails where
// that misses the aims of docs/rootfs-format.md.
func BenchmarkSharing(b *testing.B) {
	opts := imagetest.Options(b)
	opts.Walk = rootfs.FromDir
	builder, err := image.New(opts)
	if err != nil {
		b.Fatal(err)
	}
	defer builder.Close()
	src := imagetest.Source(b, map[string]string{"Dockerfile": `
FROM debian:bookworm-slim AS base
RUN apt-get update && apt-get install -y --no-install-recommends python3 perl git ca-certificates curl
FROM base AS more
RUN apt-get install -y --no-install-recommends gcc libc6-dev make nodejs vim-tiny
`})
	for b.Loop() {
		var facts [2][]rootfs.Facts
		var paths [2]string
		for i, target := range []string{"base", "more"} {
			src.Options = kiln.BuildOptions{Target: target}
			bases, err := builder.Resolve(b.Context(), src, kiln.DiscardProgress)
			if err != nil {
				b.Fatal(err)
			}
			img, err := builder.Build(b.Context(), src, bases, kiln.DiscardProgress)
			if err != nil {
				b.Fatal(err)
			}
			paths[i] = fmt.Sprintf("%s/%d", b.TempDir(), i)
			if _, err := rootfs.Write(b.Context(), img.Root, paths[i]); err != nil {
				b.Fatal(err)
			}
			if facts[i], err = rootfs.Describe(b.Context(), img.Root); err != nil {
				b.Fatal(err)
			}
			img.Close()
		}
		common := commonBytes(facts[0], facts[1])
		b.ReportMetric(common/1e6, "common-MB")
		for size, aim := range map[int]float64{64 << 10: 0.97, 256 << 10: 0.92} {
			share := rootfstest.Shared(b, paths[0], paths[1], size) / common
			b.ReportMetric(100*share, fmt.Sprintf("%%-found-at-%dKiB", size>>10))
			if share < aim {
				b.Errorf("chunks of %d KiB: %.1f %% found again, less than %.0f %%", size>>10, 100*share, 100*aim)
			}
		}
		over := rootfstest.Overhead(b, paths[0])
		b.ReportMetric(100*over, "%-overhead")
		if over > 0.08 {
			b.Errorf("holes add %.1f %% to the apparent size, more than 8 %%", 100*over)
		}
	}
}

// commonBytes counts the data of the files of a that b has too.
func commonBytes(a, b []rootfs.Facts) float64 {
	inB := map[string]string{}
	for _, f := range b {
		inB[string(f.Path)] = f.Content
	}
	total := int64(0)
	for _, f := range a {
		own := len(f.Same) == 0 || string(f.Same) == string(f.Path) // not one more name
		if f.Type == kiln.TypeRegular && own && inB[string(f.Path)] == f.Content {
			total += f.Data
		}
	}
	return float64(total)
}
