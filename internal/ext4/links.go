package ext4

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/kilnvm/kiln/internal/extsort"
)

// maxForwardLinks bounds the hardlinks that name another hardlink instead of the entry
// itself; such ones are resolved in memory.
const maxForwardLinks = 1 << 16

// hardlink is one more name of a node.
type hardlink struct {
	parent uint32 // id of its directory
	key    []byte // its own path
	target []byte // the path that it names, while unresolved
}

// resolveLinks finds the node of every hardlink. Afterwards w.names holds all additional
// names, keyed by node id and path.
func (w *writer) resolveLinks() error {
	w.names = extsort.NewSorter(w.opt.TempDir, w.opt.sortMemory/2)
	pending, err := w.joinLinks()
	if err != nil {
		return err
	}
	if len(pending) == 0 {
		return nil
	}
	// A hardlink may name another hardlink. The names found so far are the candidates
	// of the first round, those found in one round are the candidates of the next.
	fresh := map[string]uint32{}
	wanted := map[string]bool{}
	for _, p := range pending {
		wanted[string(p.target)] = true
	}
	it := w.names.Sorted()
	for it.Next() {
		if key := it.Key[4:]; wanted[string(key)] {
			fresh[string(key)] = binary.BigEndian.Uint32(it.Key)
		}
	}
	if err := it.Err(); err != nil {
		return err
	}
	more := extsort.NewSorter(w.opt.TempDir, w.opt.sortMemory/2)
	for len(pending) > 0 {
		next := map[string]uint32{}
		pending = slices.DeleteFunc(pending, func(p hardlink) bool {
			id, ok := fresh[string(p.target)]
			if ok {
				next[string(p.key)] = id
				err = orElse(err, w.addName(more, id, p.parent, p.key))
			}
			return ok
		})
		if err != nil {
			return err
		}
		if len(next) == 0 {
			first := slices.MinFunc(pending, func(a, b hardlink) int { return bytes.Compare(a.key, b.key) })
			return refuse(keyPath(first.key), "hardlink to %q, which is not there", shorten(keyPath(first.target)))
		}
		fresh = next
	}
	return w.mergeNames(more)
}

func orElse(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// joinLinks runs along nodes and hardlinks, both in path order. It returns the links
// whose target is no node.
func (w *writer) joinLinks() (pending []hardlink, err error) {
	links, nodes := w.links.Sorted(), w.nodes.All()
	var n node
	more := nodes.Next()
	if more {
		err = n.decode(nodes.Value)
	}
	for err == nil && links.Next() {
		for more && bytes.Compare(n.key, links.Key) < 0 {
			if more = nodes.Next(); more {
				if err = n.decode(nodes.Value); err != nil {
					return nil, err
				}
			}
		}
		parent, key := binary.LittleEndian.Uint32(links.Value), links.Value[4:]
		switch {
		case !more || !bytes.Equal(n.key, links.Key):
			if len(pending) == maxForwardLinks {
				return nil, refuse(keyPath(key), "hardlink to %q: more than %d hardlinks name no file", shorten(keyPath(links.Key)), maxForwardLinks)
			}
			pending = append(pending, hardlink{parent, bytes.Clone(key), bytes.Clone(links.Key)})
		case n.isDir():
			return nil, refuse(keyPath(key), "hardlink to %q, which is a directory", shorten(n.path()))
		default:
			err = w.addName(w.names, n.id, parent, key)
		}
	}
	return pending, orElse(err, orElse(links.Err(), nodes.Err()))
}

// addName records one more name of node id.
func (w *writer) addName(to *extsort.Sorter, id, parent uint32, key []byte) error {
	if w.nlink[id]++; w.nlink[id] > maxLinks {
		return refuse(keyPath(key), "more than %d hardlinks to one file", maxLinks)
	}
	k := append(binary.BigEndian.AppendUint32(nil, id), key...)
	return to.Add(k, binary.LittleEndian.AppendUint32(nil, parent))
}

// mergeNames adds the names of w.names to more, which takes its place.
func (w *writer) mergeNames(more *extsort.Sorter) error {
	old := w.names
	defer old.Close()
	w.names = more
	it := old.Sorted()
	for it.Next() {
		if err := more.Add(it.Key, it.Value); err != nil {
			return err
		}
	}
	return it.Err()
}

// nameCursor reads the additional names of nodes in the order of their ids.
type nameCursor struct {
	it   *extsort.Iterator
	have bool
}

// next returns the next additional name of node id, in path order.
func (c *nameCursor) next(id uint32) (key []byte, parent uint32, ok bool) {
	if !c.have {
		if !c.it.Next() {
			return nil, 0, false
		}
		c.have = true
	}
	if binary.BigEndian.Uint32(c.it.Key) != id {
		return nil, 0, false
	}
	c.have = false
	return c.it.Key[4:], binary.LittleEndian.Uint32(c.it.Value), true
}
