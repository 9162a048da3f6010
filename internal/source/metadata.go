package source

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"

	"github.com/BurntSushi/toml"
	"github.com/kilnvm/kiln"
)

const maxMetadataFile = 1 << 20 // bytes

// readMetadata reads the first metadata file that exists. Absence is no error. Warnings
// name keys that nobody will read.
func readMetadata(root *os.Root) (kiln.Metadata, []string, error) {
	for _, name := range kiln.MetadataFiles() {
		f, err := root.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return kiln.Metadata{}, nil, fmt.Errorf("metadata file: %w", err)
		}
		text, err := io.ReadAll(io.LimitReader(f, maxMetadataFile+1))
		_ = f.Close()
		if err != nil {
			return kiln.Metadata{}, nil, fmt.Errorf("metadata file: %w", err)
		}
		if len(text) > maxMetadataFile {
			return kiln.Metadata{}, nil, metadataError(name, 0, "is larger than %d bytes", maxMetadataFile)
		}
		return parseMetadata(name, string(text))
	}
	return kiln.Metadata{}, nil, nil
}

// unreadMetadata warns of metadata files that look as if they counted: a second one in the
// root of the context, and one beside a Dockerfile that lies elsewhere.
func unreadMetadata(root *os.Root, dockerfile string) []string {
	var warnings []string
	read := ""
	for _, name := range kiln.MetadataFiles() {
		if _, err := root.Lstat(name); err != nil {
			continue
		}
		if read != "" {
			warnings = append(warnings, fmt.Sprintf("%s is ignored, since %s is there, too", name, read))
		}
		read = name
	}
	dir := path.Dir(dockerfile)
	if dir == "." {
		return warnings
	}
	for _, name := range kiln.MetadataFiles() {
		name = path.Join(dir, name)
		if _, err := root.Lstat(name); err == nil {
			warnings = append(warnings, elsewhere(name))
		}
	}
	return warnings
}

func elsewhere(file string) string {
	return file + " is ignored: metadata are read from the root of the build context"
}

func metadataError(file string, line int, format string, args ...any) *kiln.BuildError {
	return &kiln.BuildError{Stage: kiln.StageSource, File: file, Line: line, Message: fmt.Sprintf(format, args...)}
}

// parseMetadata reads keys at the top level or under [template]; both places may be used
// in one file as long as no key is given twice.
func parseMetadata(file, text string) (kiln.Metadata, []string, error) {
	var top map[string]toml.Primitive
	md, err := toml.Decode(text, &top)
	if err != nil {
		var perr toml.ParseError
		if errors.As(err, &perr) {
			return kiln.Metadata{}, nil, metadataError(file, perr.Position.Line, "%s", perr.Message)
		}
		return kiln.Metadata{}, nil, metadataError(file, 0, "%v", err)
	}
	p := &metadataParser{file: file, md: md, seen: map[string]string{}}
	if err := p.table(nil, top); err != nil {
		return kiln.Metadata{}, nil, err
	}
	if err := p.checkSizes(); err != nil {
		return kiln.Metadata{}, nil, err
	}
	return p.out, p.warnings, nil
}

type metadataParser struct {
	file     string
	md       toml.MetaData
	out      kiln.Metadata
	warnings []string
	seen     map[string]string // key without [template] → key as written
	lines    struct{ defaultSize, minSize int }
}

// table reads one table of template keys, in the order of the file.
func (p *metadataParser) table(prefix toml.Key, table map[string]toml.Primitive) error {
	for _, key := range p.keys(prefix) {
		name := key[len(key)-1]
		v := value{p: p, key: key, prim: table[name], line: p.line(table[name])}
		if name == "template" && len(prefix) == 0 {
			var inner map[string]toml.Primitive
			if err := v.decodeTable(&inner, "a table"); err != nil {
				return err
			}
			if err := p.table(key, inner); err != nil {
				return err
			}
			continue
		}
		if other, dup := p.seen[name]; dup {
			return v.errorf("is given twice, also as %s", other)
		}
		p.seen[name] = key.String()
		if err := p.field(name, v); err != nil {
			return err
		}
	}
	return nil
}

// keys returns the keys of the table at prefix in the order of the file. A table that only has
// tables of its own may have no line in the file: [build.args] makes build, too.
func (p *metadataParser) keys(prefix toml.Key) []toml.Key {
	var list []toml.Key
	seen := map[string]bool{}
	for _, key := range p.md.Keys() {
		if len(key) <= len(prefix) || !slices.Equal(key[:len(prefix)], prefix) || seen[key[len(prefix)]] {
			continue
		}
		seen[key[len(prefix)]] = true
		list = append(list, key[:len(prefix)+1])
	}
	return list
}

func (p *metadataParser) field(name string, v value) error {
	m := &p.out
	switch name {
	case "name":
		return v.name(&m.Name)
	case "description":
		return v.text(&m.Description)
	case "author":
		return v.text(&m.Author)
	case "icon":
		return v.text(&m.Icon)
	case "tags":
		return v.tags(&m.Tags)
	case "default_size":
		p.lines.defaultSize = v.line
		return v.size(&m.DefaultSize)
	case "min_size":
		p.lines.minSize = v.line
		return v.size(&m.MinSize)
	case "env":
		return v.env(&m.Env)
	case "start_cmd":
		return v.text(&m.StartCmd)
	case "ready_cmd":
		return v.text(&m.ReadyCmd)
	case "post_restore":
		return v.text(&m.PostRestore)
	case "init":
		return v.initSystem(&m.Init)
	case "smoke":
		return v.text(&m.Smoke)
	case "disk_mb":
		return v.disk(&m.DiskMB)
	case "egress":
		return p.egressTable(v)
	case "limits":
		return p.limitsTable(v)
	case "build":
		return p.buildTable(v)
	}
	p.warnUnknown(v)
	return nil
}

// buildTable reads [build], the defaults of the image stage.
func (p *metadataParser) buildTable(v value) error {
	return p.members(v, map[string]func(value) error{
		"base":   func(m value) error { return m.baseList(&p.out.Build.Base) },
		"args":   func(m value) error { return m.strings(&p.out.Build.Args, buildArgs, checkArgs) },
		"target": func(m value) error { return m.text(&p.out.Build.Target) },
	})
}

// members reads a table whose keys are known, in the order of the file.
func (p *metadataParser) members(v value, known map[string]func(value) error) error {
	return p.entries(v, func(name string, member value) error {
		read, ok := known[name]
		if !ok {
			p.warnUnknown(member)
			return nil
		}
		return read(member)
	})
}

// entries visits the entries of a table in the order of the file.
func (p *metadataParser) entries(v value, visit func(name string, entry value) error) error {
	var inner map[string]toml.Primitive
	if err := v.decodeTable(&inner, "a table"); err != nil {
		return err
	}
	for _, key := range p.keys(v.key) {
		name := key[len(key)-1]
		if err := visit(name, value{p: p, key: key, prim: inner[name], line: p.line(inner[name])}); err != nil {
			return err
		}
	}
	return nil
}

func (p *metadataParser) warnUnknown(v value) {
	p.warnings = append(p.warnings, fmt.Sprintf("%s:%d: unknown key %q is ignored", p.file, v.line, v.key))
}

// checkSizes holds the two sizes against each other.
func (p *metadataParser) checkSizes() error {
	if p.out.DefaultSize == "" || p.out.MinSize == "" {
		return nil
	}
	if err := checkSizes(p.out); err != nil {
		return metadataError(p.file, p.lines.defaultSize, "%v", err)
	}
	return nil
}

// CheckMetadata checks values wherever they come from: a file, a flag, a request. It says
// whether the sizes exist and agree, whether texts are within their bounds, and whether disk
// and environment are possible.
func CheckMetadata(m kiln.Metadata) error {
	if err := checkSizes(m); err != nil {
		return err
	}
	if m.DiskMB != 0 {
		if err := checkDisk(m.DiskMB); err != nil {
			return kiln.Errorf(kiln.CodeInvalid, "disk_mb: %v", err)
		}
	}
	if err := checkTexts(m); err != nil {
		return err
	}
	if err := kiln.CheckEnv(m.Env); err != nil {
		return err
	}
	if err := checkInit(m.Init); err != nil {
		return kiln.Errorf(kiln.CodeInvalid, "init: %v", err)
	}
	if err := m.Egress.Validate(); err != nil {
		return err
	}
	return m.Limits.Validate()
}

func checkSizes(m kiln.Metadata) error {
	sizes := map[string]kiln.Size{}
	for _, name := range []string{m.DefaultSize, m.MinSize} {
		if name == "" {
			continue
		}
		s, err := kiln.SizeByName(name)
		if err != nil {
			return err
		}
		sizes[name] = s
	}
	if m.DefaultSize != "" && m.MinSize != "" && !sizes[m.DefaultSize].Holds(sizes[m.MinSize]) {
		return kiln.Errorf(kiln.CodeInvalid, "default_size: %q is smaller than min_size %q", m.DefaultSize, m.MinSize)
	}
	return nil
}

// errLine makes the TOML library tell where a value stands: it adds the position to
// whatever error a value's own decoder returns, and offers no other way to ask.
var errLine = errors.New("line")

type lineProbe struct{}

func (*lineProbe) UnmarshalTOML(any) error { return errLine }

// line returns the 1-based line of the key that v was written under.
func (p *metadataParser) line(v toml.Primitive) int {
	var perr toml.ParseError
	if errors.As(p.md.PrimitiveDecode(v, &lineProbe{}), &perr) {
		return perr.Position.Line
	}
	return 0
}
