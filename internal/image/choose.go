package image

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/image/base"
)

// candidateBases lists what the build argument kiln.BaseArg may be, in the order of
// preference: none if the user has set it.
func candidateBases(opts kiln.BuildOptions) []string {
	if _, set := opts.Args[kiln.BaseArg]; set {
		return nil
	}
	kept := func(name string) bool { return sameImage(name, opts.KeptBase) }
	if opts.KeptBase == "" || opts.Pull || !slices.ContainsFunc(opts.Base, kept) {
		return opts.Base
	}
	return append([]string{opts.KeptBase}, slices.DeleteFunc(slices.Clone(opts.Base), kept)...)
}

func sameImage(a, b string) bool {
	left, errA := base.ParseName(a)
	right, errB := base.ParseName(b)
	return errA == nil && errB == nil && left.Full() == right.Full()
}

// choose resolves the Dockerfile with the first candidate that can be had. What was wrong
// with those before it is told to the user; the marked base image says which one it was.
func (b *Builder) choose(ctx context.Context, src kiln.Source, file *dockerfile, candidates []string, progress kiln.Progress) ([]kiln.BaseImage, error) {
	var refused []string
	for _, name := range candidates {
		try := src
		try.Options.Args = withBase(src.Options.Args, name)
		bases, err := b.resolve(ctx, try, file, progress)
		if err == nil {
			return markChosen(bases, name, file, progress), nil
		}
		var missing *base.NotFoundError
		if ctx.Err() != nil || !errors.As(err, &missing) || !sameImage(missing.Name, name) {
			return nil, file.resolveError(ctx, err)
		}
		progress.Log(kiln.StageImage, fmt.Sprintf("%v; trying the next base image of the list", missing))
		refused = append(refused, missing.Error())
	}
	return nil, kiln.Errorf(kiln.CodeUnavailable, "%s: none of the base images %s can be had: %s",
		file.display, strings.Join(candidates, ", "), strings.Join(refused, "; ")).
		WithHint("connect this machine to a registry, or add a base image to [build] base that can be made here (%s)", b.bootstrap.Names())
}

func markChosen(bases []kiln.BaseImage, name string, file *dockerfile, progress kiln.Progress) []kiln.BaseImage {
	for i := range bases {
		if sameImage(bases[i].Name, name) {
			bases[i].Chosen = true
			return bases
		}
	}
	progress.Log(kiln.StageImage, fmt.Sprintf("warning: %s does not start from ${%s}, so the list of base images has no effect", file.display, kiln.BaseArg))
	return bases
}

// effectiveArgs returns the build arguments with the chosen base image.
func effectiveArgs(opts kiln.BuildOptions, bases []kiln.BaseImage) map[string]string {
	for _, b := range bases {
		if b.Chosen {
			return withBase(opts.Args, b.Name)
		}
	}
	return opts.Args
}

func withBase(args map[string]string, name string) map[string]string {
	out := maps.Clone(args)
	if out == nil {
		out = map[string]string{}
	}
	out[kiln.BaseArg] = name
	return out
}
