package rootfs

import (
	"crypto/sha256"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/kilnvm/kiln/internal/ext4"
	"golang.org/x/sys/unix"
)

// packages makes a tree as a package manager leaves it: files of one package have one
// time, lie in several directories, and have sizes like those of real files.
func packages(rnd *rand.Rand, count int, name string) listSource {
	var s listSource
	for p := range count {
		built := time.Unix(1500000000+rnd.Int64N(2e8), 0)
		for i := range int(math.Exp(1 + 6*rnd.Float64())) {
			size := int64(math.Exp(6 + 5*rnd.Float64() + 1.2*rnd.NormFloat64()))
			dir := []string{"usr/bin", "usr/lib", "usr/share/doc/" + name, "usr/share/man", "etc"}[rnd.IntN(5)]
			e := pattern{seed: rnd.Uint64(), size: size}.entry(fmt.Sprintf("%s/%x-%s-%d-%d", dir, rnd.Uint32(), name, p, i))
			e.ModTime = built
			s = append(s, e)
		}
	}
	return s
}

// chunkSums returns the digests of the chunks of an image with the bytes that are no
// holes in each.
func chunkSums(t *testing.T, path string, size int) map[[32]byte]int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var zero [4096]byte
	out := map[[32]byte]int{}
	for at := 0; at < len(b); at += size {
		c := b[at:min(at+size, len(b))]
		data := 0
		for i := 0; i < len(c); i += len(zero) {
			if string(c[i:min(i+4096, len(c))]) != string(zero[:len(c[i:min(i+4096, len(c))])]) {
				data += 4096
			}
		}
		if data > 0 {
			out[sha256.Sum256(c)] = data
		}
	}
	return out
}

func TestImagesShareChunks(t *testing.T) {
	rnd := rand.New(rand.NewPCG(11, 12))
	base := packages(rnd, 100, "base")
	changed := pattern{seed: 77, size: 170000}.entry("var/lib/dpkg/status")
	changed.ModTime = time.Unix(1750000000, 0)
	a := append(listSource{changed}, base...)
	changed.Open = pattern{seed: 78, size: 170000}.open
	b := append(append(listSource{changed}, base...), packages(rnd, 30, "layer")...)
	common := int64(0)
	for _, e := range base {
		common += (e.Size + 4095) / 4096 * 4096
	}
	imageA, resA := writeImage(t, a, ext4.Options{})
	imageB, _ := writeImage(t, b, ext4.Options{})
	for size, want := range map[int]float64{64 << 10: 0.97, 256 << 10: 0.92} {
		inB, found := chunkSums(t, imageB, size), 0
		for sum, data := range chunkSums(t, imageA, size) {
			if _, ok := inB[sum]; ok {
				found += data
			}
		}
		share := float64(found) / float64(common)
		t.Logf("chunks of %d KiB: %.2f %% of %d MB found again", size>>10, 100*share, common/1e6)
		if share < want {
			t.Errorf("chunks of %d KiB: only %.2f %% found again, want %.0f %%", size>>10, 100*share, 100*want)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(imageA, &st); err != nil {
		t.Fatal(err)
	}
	over := float64(resA.Size)/float64(st.Blocks*512) - 1
	t.Logf("apparent size is %.2f %% above what is allocated", 100*over)
	if over > 0.09 {
		t.Errorf("holes add %.1f %% to the apparent size, more than 9 %%", 100*over)
	}
}
