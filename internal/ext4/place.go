package ext4

import "hash/fnv"

// Placement of file data. Files are taken in an order that keeps together what changes
// together, and cut into groups at places that depend on the files around them only.
// A group begins on a chunk boundary and holds first the bodies of its files, which are
// whole chunks, then everything smaller than a chunk, tightly packed:
//
//	| body of a | body of b | tail of a, c, tail of b, d … | hole |
//
// A body is found again in another image wherever it stands. A change among small files
// moves only what follows in its own group.
const (
	groupMin  = 64  // blocks of small data before a group may end
	groupMax  = 512 // blocks of small data after which it ends in any case
	groupMask = 63  // one file in 64 ends a group
)

// dataGroup is a group of files with consecutive ranks.
type dataGroup struct {
	first uint32 // rank of its first file
	start uint64 // block, from the start of the data
	body  uint64 // blocks of bodies
	small uint64 // blocks of everything else
}

func (g *dataGroup) end() uint64 { return g.start + g.body + g.small }

// placer cuts files into groups.
type placer struct {
	groups []dataGroup
	open   bool
}

// add takes the next file: its rank, its path, the number of its blocks.
func (p *placer) add(rank uint32, key []byte, blocks uint64) {
	if !p.open {
		start := uint64(0)
		if k := len(p.groups); k > 0 {
			start = (p.groups[k-1].end() + chunkBlocks - 1) / chunkBlocks * chunkBlocks
		}
		p.groups = append(p.groups, dataGroup{first: rank, start: start})
		p.open = true
	}
	g := &p.groups[len(p.groups)-1]
	small := blocks % chunkBlocks
	g.body += blocks - small
	g.small += small
	if small == 0 {
		return
	}
	h := fnv.New32a()
	h.Write(key)
	if g.small >= groupMax || g.small >= groupMin && h.Sum32()>>8&groupMask == 0 {
		p.open = false
	}
}

// blocks returns the size of the data.
func (p *placer) blocks() uint64 {
	if len(p.groups) == 0 {
		return 0
	}
	return p.groups[len(p.groups)-1].end()
}

// gaps calls f for every hole between groups, as blocks from the start of the data.
func (p *placer) gaps(f func(from, to uint64)) {
	for i := 1; i < len(p.groups); i++ {
		if from, to := p.groups[i-1].end(), p.groups[i].start; from < to {
			f(from, to)
		}
	}
}

// placeCursor gives the files their places, in the order in which they were added.
type placeCursor struct {
	groups      []dataGroup
	at          int // 1 + index of the current group
	body, small uint64
}

// next returns where the body and the rest of the file of that rank go.
func (c *placeCursor) next(rank uint32, blocks uint64) (body, small uint64) {
	if c.at < len(c.groups) && c.groups[c.at].first == rank {
		g := &c.groups[c.at]
		c.body, c.small = g.start, g.start+g.body
		c.at++
	}
	body, small = c.body, c.small
	rest := blocks % chunkBlocks
	c.body += blocks - rest
	c.small += rest
	return body, small
}

// fileExtents maps the runs of a file to its place.
func fileExtents(dst []extent, runs []run, blocks, body, small uint64) []extent {
	whole := blocks - blocks%chunkBlocks
	q := uint64(0)
	for _, r := range runs {
		logical, count := r.start, uint64(r.count)
		if q < whole {
			n := min(count, whole-q)
			dst = appendExtent(dst, logical, body+q, n)
			logical, count, q = logical+uint32(n), count-n, q+n
		}
		if count > 0 {
			dst = appendExtent(dst, logical, small+q-whole, count)
			q += count
		}
	}
	return dst
}
