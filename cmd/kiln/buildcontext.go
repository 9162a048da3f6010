package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/client"
	"github.com/kilnvm/kiln/internal/source"
)

// input is the Dockerfile that the flags name.
func (a *app) input(f buildFlags) (source.Input, error) {
	if f.dockerfile != "-" {
		return source.Input{Dockerfile: f.dockerfile}, nil
	}
	content, err := io.ReadAll(a.stdin)
	if err != nil {
		return source.Input{}, fmt.Errorf("read the Dockerfile from standard input: %w", err)
	}
	if len(content) == 0 {
		return source.Input{}, kiln.Errorf(kiln.CodeInvalid, "standard input holds no Dockerfile")
	}
	return source.Input{Content: content}, nil
}

// createInput decides what the context of `create` is.
func (a *app) createInput(f buildFlags) (source.Input, error) {
	in, err := a.input(f)
	if err != nil {
		return in, err
	}
	if in.Dir = f.context; in.Dir != "" || in.Content != nil {
		return in, nil
	}
	if in.Dockerfile == "" {
		return in, usageError{kiln.Errorf(kiln.CodeInvalid, "no Dockerfile given").WithHint("use --dockerfile FILE, or --context DIR with a Dockerfile in it")}
	}
	dir := filepath.Dir(in.Dockerfile)
	for _, name := range kiln.MetadataFiles() {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			in.Dir = dir
			return in, nil
		}
	}
	file, err := os.Open(in.Dockerfile)
	if err != nil {
		return in, nil // Pack says what is wrong with it
	}
	defer file.Close()
	if copiesFromContext(file) {
		in.Dir = dir
	}
	return in, nil
}

// copiesFromContext reports whether a Dockerfile has an instruction that reads files of
// its build context. A file that cannot be parsed has none; the build reports it.
func copiesFromContext(dockerfile io.Reader) bool {
	parsed, err := parser.Parse(dockerfile)
	if err != nil {
		return false
	}
	stages, _, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		return false
	}
	for _, stage := range stages {
		if slices.ContainsFunc(stage.Commands, readsContext) {
			return true
		}
	}
	return false
}

func readsContext(cmd instructions.Command) bool {
	switch c := cmd.(type) {
	case *instructions.CopyCommand:
		return c.From == "" && len(c.SourcePaths) > 0
	case *instructions.AddCommand:
		return slices.ContainsFunc(c.SourcePaths, func(p string) bool { return !strings.Contains(p, "://") && !strings.HasPrefix(p, "git@") })
	case *instructions.RunCommand:
		// Until it is expanded a mount has neither type nor source.
		if c.Expand(func(word string) (string, error) { return word, nil }) != nil {
			return true
		}
		return slices.ContainsFunc(instructions.GetMounts(c), func(m *instructions.Mount) bool {
			return m.Type == instructions.MountTypeBind && m.From == ""
		})
	case *instructions.OnbuildCommand: // runs in the stages that begin with this one
		return copiesFromContext(strings.NewReader("FROM scratch\n" + c.Expression))
	}
	return false
}

// packContext writes the build context to a temporary file, which is gone when it is
// closed.
func packContext(ctx context.Context, in source.Input, req *client.CreateTemplate) (_ *os.File, err error) {
	file, err := os.CreateTemp("", "kiln-context-")
	if err != nil {
		return nil, fmt.Errorf("build context: %w", err)
	}
	defer func() {
		if err != nil {
			_ = file.Close()
		}
	}()
	if err := os.Remove(file.Name()); err != nil {
		return nil, fmt.Errorf("build context: %w", err)
	}
	packed, err := source.Pack(ctx, in, file)
	if err != nil {
		return nil, err
	}
	req.Options.Dockerfile = packed.Dockerfile
	req.Warnings = packed.Warnings
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("build context: %w", err)
	}
	return file, nil
}
