package bootbundle

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/kilnvm/kiln"
)

// wanted is a kernel module that a VM uses.
type wanted struct {
	name     string
	required bool // no VM boots without it, or without one of its alternatives
}

// wantedModules serve the VMMs of Kiln: devices on the MMIO bus (QEMU microvm, Firecracker)
// or on PCI, disks, the overlay root, the channel to the host, network and entropy.
var wantedModules = []wanted{
	{"virtio_mmio", true},
	{"virtio_pci", false},
	{"virtio_blk", true},
	{"ext4", true},
	{"overlay", true},
	{"virtio_console", true},
	{"vmw_vsock_virtio_transport", false},
	{"virtio_net", false}, // brings failover and net_failover with it
	{"virtio_rng", false},
}

// module is one kernel module, uncompressed.
type module struct {
	name    string // as the kernel calls it: with underscores
	content []byte
}

// selectModules returns the wanted modules in dir that are not built into the kernel, each after the
// modules that it needs.
//
// What a module needs is read from the module itself (its .modinfo section), because
// modules.dep is made when a kernel is installed, and this one never is.
func selectModules(dir string, want []wanted) ([]module, error) {
	tree, err := indexModules(dir)
	if err != nil {
		return nil, err
	}
	s := selection{tree: tree, done: map[string]bool{}}
	for _, w := range want {
		if err := s.add(w.name, w.required); err != nil {
			return nil, err
		}
	}
	return s.modules, nil
}

// moduleTree is what a folder like /lib/modules/VERSION offers, by module name.
type moduleTree struct {
	dir     string
	files   map[string]string
	builtin map[string]bool
}

func indexModules(dir string) (*moduleTree, error) {
	t := &moduleTree{dir: dir, files: map[string]string{}, builtin: map[string]bool{}}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name, ok := moduleName(d.Name()); ok && d.Type().IsRegular() {
			t.files[name] = path
		}
		return nil
	})
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeInvalid, "kernel modules: %w", err)
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, kiln.Errorf(kiln.CodeInvalid, "kernel modules: %w", err)
	}
	for line := range strings.Lines(string(builtin)) {
		if name, ok := moduleName(filepath.Base(strings.TrimSpace(line))); ok {
			t.builtin[name] = true
		}
	}
	return t, nil
}

// moduleName returns the name of the module in a file: virtio-rng.ko.xz holds virtio_rng.
func moduleName(file string) (string, bool) {
	base, ext, ok := strings.Cut(file, ".ko")
	if !ok || (ext != "" && ext != ".xz" && ext != ".zst" && ext != ".gz") {
		return "", false
	}
	return strings.ReplaceAll(base, "-", "_"), true
}

// selection gathers modules in load order.
type selection struct {
	tree    *moduleTree
	done    map[string]bool
	modules []module
}

// add appends the module and, before it, what it needs.
func (s *selection) add(name string, required bool) error {
	name = strings.ReplaceAll(name, "-", "_")
	if s.done[name] || s.tree.builtin[name] {
		return nil
	}
	s.done[name] = true
	path, ok := s.tree.files[name]
	if !ok {
		if !required {
			return nil
		}
		return kiln.Errorf(kiln.CodeInvalid, "kernel modules in %s lack %s, and modules.builtin does not name it", s.tree.dir, name)
	}
	content, err := readModule(path)
	if err != nil {
		return kiln.Errorf(kiln.CodeInvalid, "kernel module %s: %w", path, err)
	}
	info, err := readModinfo(content)
	if err != nil {
		return kiln.Errorf(kiln.CodeInvalid, "kernel module %s: %w", path, err)
	}
	for _, dep := range info.softBefore {
		if err := s.add(dep, false); err != nil {
			return err
		}
	}
	for _, dep := range info.depends {
		if err := s.add(dep, true); err != nil {
			return err
		}
	}
	s.modules = append(s.modules, module{name, content})
	return nil
}

// readModule reads a module and unpacks it, so that the guest's kernel need not know how.
func readModule(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	switch filepath.Ext(path) {
	case ".xz":
		r, err = xz.NewReader(f)
	case ".gz":
		r, err = gzip.NewReader(f)
	case ".zst":
		var z *zstd.Decoder
		if z, err = zstd.NewReader(f); err == nil {
			defer z.Close()
			r = z
		}
	}
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// modinfo is what a module says about itself.
type modinfo struct {
	depends    []string // modules whose symbols it uses
	softBefore []string // modules that it would like to find loaded
}

func readModinfo(content []byte) (modinfo, error) {
	file, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return modinfo{}, err
	}
	section := file.Section(".modinfo")
	if section == nil {
		return modinfo{}, errors.New("no .modinfo section")
	}
	data, err := section.Data()
	if err != nil {
		return modinfo{}, fmt.Errorf(".modinfo: %w", err)
	}
	var info modinfo
	for field := range strings.SplitSeq(string(data), "\x00") {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "depends":
			info.depends = strings.FieldsFunc(value, func(r rune) bool { return r == ',' })
		case "softdep":
			info.softBefore = append(info.softBefore, softdepsBefore(value)...)
		}
	}
	return info, nil
}

// softdepsBefore returns the names after "pre:" in a softdep field, "pre: a b post: c".
func softdepsBefore(value string) []string {
	var names []string
	before := false
	for _, word := range strings.Fields(value) {
		switch word {
		case "pre:", "post:":
			before = word == "pre:"
		default:
			if before {
				names = append(names, word)
			}
		}
	}
	return names
}
