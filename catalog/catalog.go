// Package catalog holds the built-in templates: one folder each with a Dockerfile, a
// kiln-template.toml and what the Dockerfile copies. They are embedded in the program, so
// that every server has them, and are built like any other template.
//
// A Dockerfile here works on each of the base images that its metadata lists: on an official
// image, which is the first choice, it adds little; on a bare distribution, which can be made
// from the package archive where no registry answers, it installs what is missing.
package catalog

import (
	"archive/tar"
	"bytes"
	"embed"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

//go:embed */Dockerfile */*.toml */*.txt */*.cjs */*/*.py
var files embed.FS

// Template is one built-in template.
type Template struct {
	Name string
	// Aliases are further names. A name of a template always wins over an alias.
	Aliases []string
}

// Templates returns all built-in templates, those first that cost least to build.
func Templates() []Template {
	return []Template{
		{Name: "blank", Aliases: []string{"base", "ubuntu", "ubuntu-24.04"}},
		{Name: "python", Aliases: []string{"python3"}},
		{Name: "node", Aliases: []string{"node-js", "nodejs"}},
		{Name: "deno"},
		{Name: "bun"},
		{Name: "ruby"},
		{Name: "go", Aliases: []string{"golang"}},
		{Name: "rust"},
		{Name: "java", Aliases: []string{"jdk"}},
		{Name: "python-data"},
		{Name: "code-interpreter", Aliases: []string{"code-interpreter-v1"}},
		{Name: "browser"},
	}
}

// Names returns the names of all built-in templates in the order of [Templates].
func Names() []string {
	var names []string
	for _, t := range Templates() {
		names = append(names, t.Name)
	}
	return names
}

// fileTime is the time of every file in a context, so that equal files give equal archives.
func fileTime() time.Time { return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) }

// Context returns the build context of a built-in template as a tar archive. The same
// program always returns the same bytes.
func Context(name string) ([]byte, error) {
	if !slices.Contains(Names(), name) {
		return nil, fmt.Errorf("there is no built-in template %q", name)
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	err := fs.WalkDir(files, name, func(file string, d fs.DirEntry, err error) error {
		if err != nil || file == name {
			return err
		}
		h := &tar.Header{Name: strings.TrimPrefix(file, name+"/"), ModTime: fileTime(), Mode: 0o755, Typeflag: tar.TypeDir, Format: tar.FormatPAX}
		if d.IsDir() {
			h.Name += "/"
			return w.WriteHeader(h)
		}
		content, err := files.ReadFile(path.Clean(file))
		if err != nil {
			return err
		}
		h.Typeflag, h.Mode, h.Size = tar.TypeReg, 0o644, int64(len(content))
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err = w.Write(content)
		return err
	})
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("built-in template %s: %w", name, err)
	}
	return out.Bytes(), nil
}
