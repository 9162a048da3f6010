package rootfs

import (
	"io"
	"iter"
	"strings"

	"github.com/kilnvm/kiln"
)

// The agent skeleton: what an image has in the home directory of the agent is also found
// where new users' homes are made from.
const (
	agentHome     = "home/agent"
	agentSkeleton = "etc/skel/agent-skel"
)

// WithAgentSkeleton returns src with everything in home/agent copied to
// etc/skel/agent-skel. Entries that the image itself has there are replaced.
func WithAgentSkeleton(src kiln.EntrySource) kiln.EntrySource {
	s := skeleton{src}
	if r, ok := src.(kiln.RefOpener); ok {
		return skeletonRefs{s, r}
	}
	return s
}

type skeleton struct{ src kiln.EntrySource }

type skeletonRefs struct {
	skeleton
	refs kiln.RefOpener
}

func (s skeletonRefs) OpenRef(ref string) (io.ReadCloser, error) { return s.refs.OpenRef(ref) }

func (s skeleton) Close() error { return s.src.Close() }

// Entries yields the entries of the image and then the copies, so that these win. A copy
// shares the original's content functions, and is a file of its own.
func (s skeleton) Entries() iter.Seq2[kiln.Entry, error] {
	return func(yield func(kiln.Entry, error) bool) {
		var copies []kiln.Entry
		for e, err := range s.src.Entries() {
			if !yield(e, err) || err != nil {
				return
			}
			if to, ok := skeletonPath(e.Path); ok {
				e.Path = to
				if e.Type == kiln.TypeHardlink {
					if to, ok := skeletonPath(e.Linkname); ok {
						e.Linkname = to
					}
				}
				copies = append(copies, e)
			}
		}
		for _, e := range copies {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// skeletonPath returns where a path of the agent's home goes.
func skeletonPath(path string) (string, bool) {
	rest, ok := strings.CutPrefix(path, agentHome)
	if !ok || rest != "" && rest[0] != '/' {
		return "", false
	}
	return agentSkeleton + rest, true
}
