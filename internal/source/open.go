package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"strings"

	"github.com/kilnvm/kiln"
)

// Open reads the unpacked context in dir: its metadata and its digest. Flags of the
// build win over the metadata file's [build] table. What the user got wrong (no such
// Dockerfile, a wrong value in the metadata file) is a *kiln.BuildError.
func Open(ctx context.Context, dir string, opts kiln.BuildOptions) (kiln.Source, error) {
	src, root, rules, err := open(dir, opts)
	if err != nil {
		return kiln.Source{}, err
	}
	defer root.Close()
	if src.Digest, err = digest(ctx, root, rules); err != nil {
		return kiln.Source{}, err
	}
	return src, nil
}

// Recipe is Open without the digest, for a directory that [UnpackRecipe] has filled: it
// is enough to learn which base images a build would start from.
func Recipe(dir string, opts kiln.BuildOptions) (kiln.Source, error) {
	src, root, _, err := open(dir, opts)
	if err != nil {
		return kiln.Source{}, err
	}
	return src, root.Close()
}

func open(dir string, opts kiln.BuildOptions) (_ kiln.Source, _ *os.Root, _ *ignoreRules, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return kiln.Source{}, nil, nil, fmt.Errorf("build context: %w", err)
	}
	defer func() {
		if err != nil {
			_ = root.Close()
		}
	}()
	opts.Dockerfile = cleanDockerfile(opts.Dockerfile)
	src := kiln.Source{Dir: dir, Options: opts, DisplayName: strings.TrimPrefix(opts.Dockerfile, outsideDir+"/")}
	if err := checkDockerfile(root, src); err != nil {
		return kiln.Source{}, nil, nil, err
	}
	if src.Metadata, src.Warnings, err = readMetadata(root); err != nil {
		return kiln.Source{}, nil, nil, err
	}
	src.Warnings = append(src.Warnings, unreadMetadata(root, opts.Dockerfile)...)
	src.Options = WithBuildTable(src.Options, src.Metadata.Build)
	rules, err := loadIgnore(root, opts.Dockerfile)
	if err != nil {
		return kiln.Source{}, nil, nil, err
	}
	return src, root, rules, nil
}

func cleanDockerfile(name string) string {
	if name == "" {
		return defaultDockerfile
	}
	return path.Clean(name)
}

func checkDockerfile(root *os.Root, src kiln.Source) error {
	fail := func(format string, args ...any) error {
		return &kiln.BuildError{Stage: kiln.StageSource, File: src.DisplayName, Message: fmt.Sprintf(format, args...)}
	}
	name := src.Options.Dockerfile
	if !fs.ValidPath(name) || name == "." {
		return fail("the Dockerfile must be named by a path inside the build context")
	}
	info, err := root.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fail("no such Dockerfile in the build context")
	case err != nil:
		return fail("the Dockerfile cannot be opened: %v", err)
	case !info.Mode().IsRegular():
		return fail("the Dockerfile is not a regular file")
	case info.Size() == 0:
		return fail("the Dockerfile is empty")
	}
	return nil
}

// WithBuildTable returns opts with what a [build] table says where they say nothing.
func WithBuildTable(opts kiln.BuildOptions, build kiln.MetadataBuild) kiln.BuildOptions {
	if opts.Target == "" {
		opts.Target = build.Target
	}
	if len(opts.Base) == 0 {
		opts.Base = build.Base
	}
	if len(build.Args) == 0 {
		return opts
	}
	args := make(map[string]string, len(build.Args)+len(opts.Args))
	maps.Copy(args, build.Args)
	maps.Copy(args, opts.Args)
	opts.Args = args
	return opts
}
