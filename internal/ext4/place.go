package ext4

import "hash/fnv"

// Placement of file data. Files come in the order of their times (see rankKey), which
// keeps together what one package or one build step brought. They are gathered on three
// levels:
//
//   - A cluster is a run of files whose times are less than clusterGap apart. What a
//     further layer adds mostly forms clusters of its own.
//   - A unit is a stretch of small data that begins on a pieceBlocks boundary: one or
//     several small clusters, or a part of a large one, cut where a hash of a path says.
//   - A group begins on a chunk boundary and holds the files of some units.
//
// Within a group stand first the bodies of its files, whole chunks each; then their
// pieces, whole multiples of pieceBlocks from what remains; then the units with the
// rest, tightly packed:
//
//	| body of a | body of b | piece of a | piece of c | rest of a, rest of c, d … | hole |
//
// Bodies are found again by chunks of 256 KiB and pieces by chunks of 64 KiB wherever
// they stand; a change among small files moves only what follows in its own unit.
const (
	pieceBlocks = 16
	clusterGap  = 3600 // seconds
	largeBlocks = 72   // of pieces and rests that make a cluster a large one
	groupBlocks = 256  // after which a group ends where little is lost by it
	groupMax    = 1024 // after which it ends in any case
	unitMax     = 512
	pathMask    = 31 // one path in 32 may end a unit within a large cluster
	padShare    = 6  // the hole before the next boundary is at most this part of what stands before it
	pendingMax  = 4096
)

// unit is a stretch of rests. Ranks of its files are consecutive.
type unit struct {
	first  uint32 // rank of its first file
	start  uint64 // block, from the start of the data
	blocks uint64
}

// dataGroup is a group; its units are units[from:to] of the placer.
type dataGroup struct {
	start    uint64 // block, from the start of the data
	body     uint64 // blocks of bodies
	mid      uint64 // blocks of pieces
	from, to int
}

// fileSize is how the blocks of a file are divided.
type fileSize struct{ body, mid, rest uint64 }

func divide(blocks uint64) fileSize {
	rest := blocks % pieceBlocks
	mid := blocks%chunkBlocks - rest
	return fileSize{blocks - mid - rest, mid, rest}
}

// placer cuts files into units and groups. Fill it with add, then call finish.
type placer struct {
	groups []dataGroup
	units  []unit

	group fileSize // of the group that is being filled: its rests include holes
	first int      // its first unit
	unit  fileSize // of the unit that is being filled
	begin uint32   // its first rank
	open  bool     // there is such a unit

	// The current cluster: as long as it is small its files wait, since they go
	// elsewhere if it turns out to be large.
	waiting []waitingFile
	small   uint64 // blocks of pieces and rests that wait
	large   bool
	last    int64 // time of the last file
	any     bool
	end     uint64
}

type waitingFile struct {
	rank   uint32
	hash   uint32
	blocks uint64
}

// add takes the next file: its rank, time in seconds, path, and number of blocks.
func (p *placer) add(rank uint32, sec int64, key []byte, blocks uint64) {
	if p.any && sec-p.last > clusterGap {
		p.endCluster()
	}
	p.any, p.last = true, sec
	h := fnv.New32a()
	h.Write(key)
	f := waitingFile{rank, h.Sum32() >> 8, blocks}
	if p.large {
		p.addLarge(f)
		return
	}
	s := divide(blocks)
	p.waiting = append(p.waiting, f)
	if p.small += s.mid + s.rest; p.small < largeBlocks && len(p.waiting) < pendingMax {
		return
	}
	p.large = true
	p.endUnit()
	p.endGroup()
	for _, f := range p.waiting {
		p.addLarge(f)
	}
	p.waiting = p.waiting[:0]
}

// endCluster settles the files that wait, or what is open of a large cluster.
func (p *placer) endCluster() {
	if p.large {
		p.endUnit()
		p.endGroup()
	} else {
		for _, f := range p.waiting {
			p.put(f)
		}
		if n := p.unit.rest; gap(n, pieceBlocks) <= n {
			p.endUnit()
			p.endGroupIfFull()
		}
	}
	p.waiting, p.small, p.large = p.waiting[:0], 0, false
}

// addLarge takes a file of a large cluster.
func (p *placer) addLarge(f waitingFile) {
	p.put(f)
	n := p.unit.rest
	if n >= unitMax || n >= pieceBlocks && f.hash&pathMask == 0 && gap(n, pieceBlocks)*padShare <= n {
		p.endUnit()
		p.endGroupIfFull()
	}
}

// put adds a file to the current unit.
func (p *placer) put(f waitingFile) {
	if !p.open {
		p.open, p.begin = true, f.rank
	}
	s := divide(f.blocks)
	p.unit.body += s.body
	p.unit.mid += s.mid
	p.unit.rest += s.rest
}

func (p *placer) endUnit() {
	if !p.open {
		return
	}
	p.units = append(p.units, unit{first: p.begin, blocks: p.unit.rest})
	p.group.body += p.unit.body
	p.group.mid += p.unit.mid
	p.group.rest += p.unit.rest + gap(p.unit.rest, pieceBlocks)
	p.unit, p.open = fileSize{}, false
}

func (p *placer) endGroupIfFull() {
	n := p.group.mid + p.group.rest
	if n >= groupMax || n >= groupBlocks && gap(n, chunkBlocks)*padShare <= n {
		p.endGroup()
	}
}

// endGroup gives the units of the group their places.
func (p *placer) endGroup() {
	if p.first == len(p.units) {
		return
	}
	g := dataGroup{
		start: p.end + gap(p.end, chunkBlocks),
		body:  p.group.body, mid: p.group.mid, from: p.first, to: len(p.units),
	}
	at := g.start + g.body + g.mid
	for i := g.from; i < g.to; i++ {
		u := &p.units[i]
		u.start = at + gap(at, pieceBlocks)
		at = u.start + u.blocks
	}
	p.end = at
	p.groups = append(p.groups, g)
	p.group, p.first = fileSize{}, len(p.units)
}

// finish settles everything that is open.
func (p *placer) finish() {
	p.endCluster()
	p.endUnit()
	p.endGroup()
}

// gap returns how many blocks are missing from n to a multiple of unit.
func gap(n, unit uint64) uint64 { return (unit - n%unit) % unit }

// blocks returns the size of the data.
func (p *placer) blocks() uint64 { return p.end }

// gaps calls f for every hole in the data, as blocks from its start, in ascending order.
func (p *placer) gaps(f func(from, to uint64)) {
	at := uint64(0)
	upTo := func(next uint64) {
		if at < next {
			f(at, next)
		}
		at = next
	}
	for _, g := range p.groups {
		upTo(g.start)
		at = g.start + g.body + g.mid
		for _, u := range p.units[g.from:g.to] {
			upTo(u.start)
			at = u.start + u.blocks
		}
	}
}

// spot is where the three parts of a file go, as blocks from the start of the data.
type spot struct{ body, mid, rest uint64 }

// placeCursor gives the files their places, in the order in which they were added.
type placeCursor struct {
	p     *placer
	group int // 1 + index of the current one
	unit  int
	at    spot
}

// next returns the place of the file of that rank, and whether a group begins with it.
func (c *placeCursor) next(rank uint32, blocks uint64) (s spot, newGroup bool) {
	if c.unit < len(c.p.units) && c.p.units[c.unit].first == rank {
		if c.group < len(c.p.groups) && c.p.groups[c.group].from == c.unit {
			g := &c.p.groups[c.group]
			c.at.body, c.at.mid = g.start, g.start+g.body
			c.group++
			newGroup = true
		}
		c.at.rest = c.p.units[c.unit].start
		c.unit++
	}
	s = c.at
	d := divide(blocks)
	c.at.body += d.body
	c.at.mid += d.mid
	c.at.rest += d.rest
	return s, newGroup
}

// fileExtents maps the runs of a file to its place, base blocks into the image.
func fileExtents(dst []extent, runs []run, blocks uint64, s spot, base uint64) []extent {
	d := divide(blocks)
	parts := [3]struct{ at, left uint64 }{{s.body, d.body}, {s.mid, d.mid}, {s.rest, d.rest}}
	k := 0
	for _, r := range runs {
		logical, count := r.start, uint64(r.count)
		for count > 0 {
			for parts[k].left == 0 {
				k++
			}
			n := min(count, parts[k].left)
			dst = appendExtent(dst, logical, base+parts[k].at, n)
			parts[k].at += n
			parts[k].left -= n
			logical, count = logical+uint32(n), count-n
		}
	}
	return dst
}
