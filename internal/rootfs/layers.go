package rootfs

import (
	"crypto/sha256"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"

	"github.com/kilnvm/kiln"
)

const (
	whiteoutPrefix = ".wh."
	opaqueWhiteout = ".wh..wh..opq"
)

// FromLayers returns the root filesystem that the layers of an OCI image make when they
// are applied one after the other, the lowest first: a layer is a tar archive whose
// whiteouts hide what lower layers have. Layers are read as [FromTar] does.
func FromLayers(layers ...io.Reader) (kiln.EntrySource, error) {
	s := &layerSource{}
	for i, r := range layers {
		src, err := FromTar(r)
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		s.layers = append(s.layers, src.(*tarSource))
	}
	return s, nil
}

type layerSource struct{ layers []*tarSource }

func (s *layerSource) Close() error {
	var first error
	for _, l := range s.layers {
		if err := l.Close(); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// OpenRef opens content by a reference that has the layer's number before that of the
// layer itself.
func (s *layerSource) OpenRef(ref string) (io.ReadCloser, error) {
	num, rest, _ := strings.Cut(ref, "/")
	i, err := strconv.Atoi(num)
	if err != nil || i < 0 || i >= len(s.layers) {
		return nil, fmt.Errorf("layer content %q: not a reference", ref)
	}
	return s.layers[i].OpenRef(rest)
}

// pathID stands for a path in the tables of a stack: a table of paths would not fit.
type pathID [16]byte

func idOf(path string) pathID {
	sum := sha256.Sum256([]byte(path))
	return pathID(sum[:16])
}

// stack knows, for every path, the topmost layers that say something about it. Layers
// are numbered from 1; 0 means none.
type stack struct {
	entry  map[pathID]uint16 // has it, as whatever
	cover  map[pathID]uint16 // has something that hides all below it in lower layers
	hidden map[pathID]uint16 // has a whiteout for it
}

// survey reads the headers of all layers.
func (s *layerSource) survey() (*stack, []map[string]bool, error) {
	st := &stack{map[pathID]uint16{}, map[pathID]uint16{}, map[pathID]uint16{}}
	targets := make([]map[string]bool, len(s.layers))
	for i, l := range s.layers {
		nr := uint16(i + 1)
		targets[i] = map[string]bool{}
		for e, err := range l.Entries() {
			if err != nil {
				return nil, nil, fmt.Errorf("layer %d: %w", nr, err)
			}
			dir, name := splitPath(e.Path)
			switch {
			case name == opaqueWhiteout:
				st.cover[idOf(dir)] = nr
			case strings.HasPrefix(name, whiteoutPrefix):
				st.hidden[idOf(joinPath(dir, name[len(whiteoutPrefix):]))] = nr
			default:
				st.entry[idOf(e.Path)] = nr
				if e.Type != kiln.TypeDirectory {
					st.cover[idOf(e.Path)] = nr
				}
				if e.Type == kiln.TypeHardlink {
					targets[i][e.Linkname] = true
				}
			}
		}
	}
	return st, targets, nil
}

func splitPath(path string) (dir, name string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return ".", path
}

func joinPath(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

// visible reports whether a path of layer nr is still there when all layers are applied.
func (st *stack) visible(path string, nr uint16) bool {
	id := idOf(path)
	if st.entry[id] > nr || st.hidden[id] > nr {
		return false
	}
	for dir := path; dir != "."; {
		dir, _ = splitPath(dir)
		id := idOf(dir)
		if st.hidden[id] > nr || st.cover[id] > nr {
			return false
		}
	}
	return true
}

// Entries yields what is visible. A hardlink whose file is hidden by an upper layer
// keeps the content: it becomes the file.
func (s *layerSource) Entries() iter.Seq2[kiln.Entry, error] {
	return func(yield func(kiln.Entry, error) bool) {
		st, targets, err := s.survey()
		if err != nil {
			yield(kiln.Entry{}, err)
			return
		}
		for i, l := range s.layers {
			if !s.layer(st, targets[i], i, l, yield) {
				return
			}
		}
	}
}

// layer yields the visible entries of one layer. It reports whether to go on.
func (s *layerSource) layer(st *stack, targets map[string]bool, i int, l *tarSource, yield func(kiln.Entry, error) bool) bool {
	nr := uint16(i + 1)
	lost := map[string]kiln.Entry{} // hidden files that have hardlinks, by path
	heir := map[string]string{}     // the name that took over from such a file
	for e, err := range l.Entries() {
		if err != nil {
			yield(kiln.Entry{}, fmt.Errorf("layer %d: %w", nr, err))
			return false
		}
		if _, name := splitPath(e.Path); strings.HasPrefix(name, whiteoutPrefix) {
			continue
		}
		if e.Type == kiln.TypeRegular && e.Size > 0 {
			e.Ref = strconv.Itoa(i) + "/" + e.Ref
		}
		if !st.visible(e.Path, nr) {
			if e.Type != kiln.TypeHardlink && targets[e.Path] {
				lost[e.Path] = e
			}
			continue
		}
		if e.Type == kiln.TypeHardlink {
			if to, ok := heir[e.Linkname]; ok {
				e.Linkname = to
			} else if file, ok := lost[e.Linkname]; ok {
				heir[e.Linkname] = e.Path
				file.Path = e.Path
				e = file
			}
		}
		if !yield(e, nil) {
			return false
		}
	}
	return true
}
