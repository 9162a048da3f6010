package rootfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/kilnvm/kiln"
)

// Diff returns how the image at path b differs from the one at path a, in the order of
// paths. Content is compared byte by byte; where it differs the values are SHA-256.
func Diff(ctx context.Context, a, b string) ([]Difference, error) {
	var sides [2]*side
	var errs [2]error
	var both sync.WaitGroup
	for i, path := range []string{a, b} {
		both.Go(func() { sides[i], errs[i] = openSide(ctx, path) })
	}
	both.Wait()
	for _, s := range sides {
		if s != nil {
			defer s.Close()
		}
	}
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	if err := compareContents(ctx, sides[0], sides[1]); err != nil {
		return nil, err
	}
	return Compare(sides[0].facts, sides[1].facts), nil
}

// side is one of two images that are compared.
type side struct {
	*Image
	path  string
	facts []Facts
	files map[string]kiln.Entry // regular files by content reference, which their facts hold
}

func openSide(ctx context.Context, path string) (*side, error) {
	im, err := Open(path)
	if err != nil {
		return nil, err
	}
	s := &side{Image: im, path: path, files: map[string]kiln.Entry{}}
	s.facts, err = describeWith(ctx, im, func(e *kiln.Entry) (string, error) {
		s.files[e.Ref] = *e
		return e.Ref, nil
	})
	if err != nil {
		im.Close()
		return nil, fmt.Errorf("image %s: %w", path, err)
	}
	return s, nil
}

// contentPair is the content of one file on both sides.
type contentPair struct{ a, b string }

// compareContents puts into the facts of files on both sides what their content is:
// nothing where it is the same, or where another size says enough; else the digests.
func compareContents(ctx context.Context, a, b *side) error {
	others := make(map[string]*Facts, len(b.facts))
	for i := range b.facts {
		others[string(b.facts[i].Path)] = &b.facts[i]
	}
	known := map[contentPair][2]string{} // results for files with several names
	for i := range a.facts {
		x := &a.facts[i]
		y := others[string(x.Path)]
		if y == nil || x.Type != kiln.TypeRegular || y.Type != kiln.TypeRegular {
			continue
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		pair := contentPair{x.Content, y.Content}
		sums, ok := known[pair]
		if !ok && x.Size == y.Size {
			var err error
			if sums, err = compareContent(a.files[pair.a], b.files[pair.b]); err != nil {
				return fmt.Errorf("compare %q of images %s and %s: %w", x.Path, a.path, b.path, err)
			}
			known[pair] = sums
		}
		x.Content, y.Content = sums[0], sums[1]
	}
	return nil
}

// compareContent returns the digests of two files of one size, or nothing if they are equal.
func compareContent(a, b kiln.Entry) (sums [2]string, err error) {
	same, err := sameContent(a, b)
	if same || err != nil {
		return sums, err
	}
	for i, e := range []kiln.Entry{a, b} {
		r, err := e.Open()
		if err != nil {
			return sums, err
		}
		h := sha256.New()
		_, err = io.Copy(h, r)
		r.Close()
		if err != nil {
			return sums, err
		}
		sums[i] = hex.EncodeToString(h.Sum(nil))
	}
	return sums, nil
}

func sameContent(a, b kiln.Entry) (bool, error) {
	ra, err := a.Open()
	if err != nil {
		return false, err
	}
	defer ra.Close()
	rb, err := b.Open()
	if err != nil {
		return false, err
	}
	defer rb.Close()
	var bufs [2][64 << 10]byte
	for rest := a.Size; rest > 0; {
		n := min(rest, int64(len(bufs[0])))
		for i, r := range []io.Reader{ra, rb} {
			if _, err := io.ReadFull(r, bufs[i][:n]); err != nil {
				return false, err
			}
		}
		if !bytes.Equal(bufs[0][:n], bufs[1][:n]) {
			return false, nil
		}
		rest -= n
	}
	return true, nil
}
