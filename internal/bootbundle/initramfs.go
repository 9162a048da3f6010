package bootbundle

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"

	"github.com/cavaliergopher/cpio"

	"github.com/kilnvm/kiln"
)

// initramfs returns an uncompressed newc archive with the daemon as /init and the modules in
// /modules, named in the order in which they load. Times are zero and owners root, so that
// equal inputs give equal bytes. It is not compressed because the guest would have to
// undo that, and all VMs of a host share the file's pages.
func initramfs(daemon []byte, modules []module) ([]byte, error) {
	var out bytes.Buffer
	w := cpio.NewWriter(&out)
	if err := w.WriteHeader(&cpio.Header{Name: "modules", Mode: cpio.TypeDir | 0o755, Links: 2}); err != nil {
		return nil, err
	}
	add := func(name string, mode cpio.FileMode, content []byte) error {
		if err := w.WriteHeader(&cpio.Header{Name: name, Mode: cpio.TypeReg | mode, Size: int64(len(content))}); err != nil {
			return err
		}
		_, err := w.Write(content)
		return err
	}
	for i, m := range modules {
		if err := add(fmt.Sprintf("modules/%03d-%s.ko", i, m.name), 0o644, m.content); err != nil {
			return nil, err
		}
	}
	if err := add("init", 0o755, daemon); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// readDaemon reads the program that becomes /init, which must run where there is nothing else.
func readDaemon(path string) ([]byte, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeUnavailable, "guest daemon: %w", err).WithHint("`make build` makes bin/kiln-sandboxd")
	}
	file, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeInvalid, "guest daemon %s is not a program: %w", path, err)
	}
	static := true
	for _, p := range file.Progs {
		static = static && p.Type != elf.PT_INTERP
	}
	if file.Machine != elf.EM_X86_64 || !static {
		return nil, kiln.Errorf(kiln.CodeInvalid, "guest daemon %s is not a static program for linux/amd64", path).
			WithHint("build it with CGO_ENABLED=0")
	}
	return content, nil
}
