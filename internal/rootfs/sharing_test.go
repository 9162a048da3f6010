package rootfs

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/kilnvm/kiln/internal/ext4"
	"github.com/kilnvm/kiln/internal/rootfs/rootfstest"
)

// packages makes a tree as a package manager leaves it: files of one package have one
// time, lie in several directories, and have sizes like those of real files.
func packages(rnd *rand.Rand, count int, name string) rootfstest.Tree {
	var s rootfstest.Tree
	for p := range count {
		built := time.Unix(1500000000+rnd.Int64N(2e8), 0)
		for i := range int(math.Exp(1 + 6*rnd.Float64())) {
			size := int64(math.Exp(6 + 5*rnd.Float64() + 1.2*rnd.NormFloat64()))
			dir := []string{"usr/bin", "usr/lib", "usr/share/doc/" + name, "usr/share/man", "etc"}[rnd.IntN(5)]
			e := rootfstest.Pattern{Seed: rnd.Uint64(), Size: size}.Entry(fmt.Sprintf("%s/%x-%s-%d-%d", dir, rnd.Uint32(), name, p, i))
			e.ModTime = built
			s = append(s, e)
		}
	}
	return s
}

func TestImagesShareChunks(t *testing.T) {
	rnd := rand.New(rand.NewPCG(11, 12))
	base := packages(rnd, 100, "base")
	changed := rootfstest.Pattern{Seed: 77, Size: 170000}.Entry("var/lib/dpkg/status")
	changed.ModTime = time.Unix(1750000000, 0)
	a := append(rootfstest.Tree{changed}, base...)
	changed.Open = rootfstest.Pattern{Seed: 78, Size: 170000}.Open
	b := append(append(rootfstest.Tree{changed}, base...), packages(rnd, 30, "layer")...)
	common := int64(0)
	for _, e := range base {
		common += (e.Size + 4095) / 4096 * 4096
	}
	imageA, _ := writeImage(t, a, ext4.Options{})
	imageB, _ := writeImage(t, b, ext4.Options{})
	for size, want := range map[int]float64{64 << 10: 0.97, 256 << 10: 0.92} {
		share := rootfstest.Shared(t, imageA, imageB, size) / float64(common)
		t.Logf("chunks of %d KiB: %.2f %% of %d MB found again", size>>10, 100*share, common/1e6)
		if share < want {
			t.Errorf("chunks of %d KiB: only %.2f %% found again, want %.0f %%", size>>10, 100*share, 100*want)
		}
	}
	over := rootfstest.Overhead(t, imageA)
	t.Logf("apparent size is %.2f %% above what is allocated", 100*over)
	// Real images, for which the aim is 8 %, are measured by test/guestview.
	if over > 0.085 {
		t.Errorf("holes add %.2f %% to the apparent size, more than 8.5 %%", 100*over)
	}
}
