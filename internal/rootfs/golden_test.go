package rootfs

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/ext4"
	"github.com/kilnvm/kiln/internal/rootfs/rootfstest"
)

// Digests of images of fixed inputs, one for each source and shape. A change of one of
// them is a change of the format: raise FormatVersion.
func TestGoldenDigests(t *testing.T) {
	archive := cat(rawHeader("bin", '5', 0, "", nil), file("bin/sh", "#!"), rawHeader("bin/bash", '1', 0, "bin/sh", nil),
		paxHeader("mtime", "1700000000.123456789", "SCHILY.xattr.user.a", "b"), file("etc/motd", strings.Repeat("hello\n", 2000)),
		rawHeader("link", '2', 0, strings.Repeat("x/", 45), nil))
	upper := cat(file("bin/.wh.bash", ""), file("etc/motd", "bye\n"))
	tar, err := FromTar(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	defer tar.Close()
	layers, err := FromLayers(bytes.NewReader(archive), bytes.NewReader(upper))
	if err != nil {
		t.Fatal(err)
	}
	defer layers.Close()
	sparse := rootfstest.Pattern{Seed: 3, Size: 9 << 20, Extents: []kiln.Extent{{Offset: 4096, Length: 300000}, {Offset: 8 << 20, Length: 1}}}
	for _, c := range []struct {
		name string
		src  kiln.EntrySource
		want kiln.Digest
	}{
		{"nothing", rootfstest.Tree{}, "sha256:f977d39f28007d8c7d65af190d37bab47d957902cd46b4a06d897e548ae9f78c"},
		{"archive", tar, "sha256:8787d2fddde77983b8668f6a0b366b66cda91cf0e018f598e0446e1b8b9cdcdf"},
		{"layers", layers, "sha256:7852da77a91ace0eaea689ed369eaebd2cab48d5f47b0afa6495e79c4f2b4ccb"},
		{"sparse file", rootfstest.Tree{sparse.Entry("f")}, "sha256:154c201e2562b0d406c27ba2e0193303d3e6ebd0585296d07e806234bfa8d113"},
		{"indexed directory", manyFiles(5000), "sha256:d841a7ec6c1c48759894b57a1973f2cad2b746f94861d5b516bb7965f4cad860"},
	} {
		path, res := writeImage(t, c.src, ext4.Options{})
		if res.Digest != c.want {
			t.Errorf("%s: digest %s, want %s", c.name, res.Digest, c.want)
		}
		rootfstest.Fsck(t, path)
	}
}

// The tools of others must read an image without a word of complaint.
func TestOtherToolsReadImages(t *testing.T) {
	path, _ := writeImage(t, smallTree(), ext4.Options{})
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"dumpe2fs", path}, "metadata_csum"},
		{[]string{"debugfs", "-R", "stat sizes/4097", path}, "Size: 4097"},
		{[]string{"debugfs", "-R", "htree_dump many", path}, "Entry #0"},
		{[]string{"debugfs", "-R", "ea_list xattrs/cap", path}, "security.capability"},
		{[]string{"debugfs", "-R", "stat dev/c3", path}, "number: 300:01"},
	} {
		cmd := exec.Command(c.args[0], c.args[1:]...)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		_, complaints, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n") // the first line is its version
		if err != nil || complaints != "" || !strings.Contains(stdout.String(), c.want) {
			t.Errorf("%q: %v %s\nno %q in %.2000s", c.args, err, complaints, c.want, stdout.String())
		}
	}
}
