package source

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"

	"github.com/moby/patternmatcher"
)

// entry is one member of a build context.
type entry struct {
	path   string // relative, slash-separated
	info   fs.FileInfo
	target string // of a symlink
}

// walker visits a context in a fixed order: the members of a directory by name, each
// directory before its members.
type walker struct {
	ctx   context.Context
	root  *os.Root
	rules *ignoreRules
	visit func(entry) error
	// pending are ignored directories on the way to the current one. They belong to
	// the context only if something below them does.
	pending []entry
}

func walk(ctx context.Context, root *os.Root, rules *ignoreRules, visit func(entry) error) error {
	w := &walker{ctx: ctx, root: root, rules: rules, visit: visit}
	return w.dir(".", patternmatcher.MatchInfo{})
}

func (w *walker) dir(dir string, parent patternmatcher.MatchInfo) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	f, err := w.root.Open(dir)
	if err != nil {
		return fmt.Errorf("build context: %w", err)
	}
	list, err := f.ReadDir(-1)
	_ = f.Close()
	if err != nil {
		return fmt.Errorf("build context: %w", err)
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	for _, d := range list {
		if err := w.member(path.Join(dir, d.Name()), parent); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) member(name string, parent patternmatcher.MatchInfo) error {
	ignored, match, err := w.rules.matcher.MatchesUsingParentResults(name, parent)
	if err != nil {
		return fmt.Errorf("%s: %w", ignoreFile, err)
	}
	ignored = ignored && !w.rules.always[name]
	info, err := w.root.Lstat(name)
	if err != nil {
		return fmt.Errorf("build context: %w", err)
	}
	e := entry{path: name, info: info}
	if info.Mode().Type() == fs.ModeSymlink {
		if e.target, err = w.root.Readlink(name); err != nil {
			return fmt.Errorf("build context: %w", err)
		}
	}
	switch {
	case !ignored:
		if err := w.emit(e); err != nil {
			return err
		}
		if info.IsDir() {
			return w.dir(name, match)
		}
	case info.IsDir() && w.rules.mayHoldIncluded(name):
		depth := len(w.pending)
		w.pending = append(w.pending, e)
		err := w.dir(name, match)
		w.pending = w.pending[:min(depth, len(w.pending))]
		return err
	}
	return nil
}

// emit visits the directories that were waiting for a reason to belong, then e.
func (w *walker) emit(e entry) error {
	for _, p := range w.pending {
		if err := w.visit(p); err != nil {
			return err
		}
	}
	w.pending = w.pending[:0]
	return w.visit(e)
}
