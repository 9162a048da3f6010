package rootfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/ext4"
	"golang.org/x/sys/unix"
)

// listSource is a root filesystem that stands in memory.
type listSource []kiln.Entry

func (s listSource) Entries() iter.Seq2[kiln.Entry, error] {
	return func(yield func(kiln.Entry, error) bool) {
		for _, e := range s {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (s listSource) Close() error { return nil }

// pattern is content that is cheap to make and differs from file to file.
type pattern struct {
	seed    uint64
	size    int64
	extents []kiln.Extent
}

func (p pattern) open() (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(p, 0, p.size)), nil
}

func (p pattern) ReadAt(b []byte, off int64) (int, error) {
	n := int(min(int64(len(b)), max(p.size-off, 0)))
	b = b[:n]
	clear(b)
	all := []kiln.Extent{{Offset: 0, Length: p.size}}
	if p.extents != nil {
		all = p.extents
	}
	for _, x := range all {
		for at := max(x.Offset, off); at < min(x.Offset+x.Length, off+int64(n)); at++ {
			b[at-off] = byte((uint64(at)*2654435761 + p.seed + uint64(at>>15)*0x9E3779B97F4A7C15) >> 7)
		}
	}
	if off+int64(n) == p.size {
		return n, io.EOF
	}
	return n, nil
}

func (p pattern) entry(path string) kiln.Entry {
	return kiln.Entry{Path: path, Type: kiln.TypeRegular, Mode: 0o644, Size: p.size, Extents: p.extents, Open: p.open,
		ModTime: time.Unix(1700000000+int64(p.seed%50), int64(p.seed%1000)*1001).UTC()}
}

// acl returns a POSIX ACL as getxattr returns it, with an entry for one user and group.
func acl(user, group uint32) string {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 7, ^uint32(0)}, {2, 6, user}, {4, 5, ^uint32(0)}, {8, 4, group}, {0x10, 7, ^uint32(0)}, {0x20, 4, ^uint32(0)}} {
		b = le.AppendUint16(b, e.tag)
		b = le.AppendUint16(b, e.perm)
		b = le.AppendUint32(b, e.id)
	}
	return string(b)
}

const netBind = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// stressTree has more than ten thousand entries with every feature at least once.
func stressTree() listSource {
	var s listSource
	mtime := time.Unix(1500000000, 123456789).UTC()
	add := func(e kiln.Entry) {
		if e.ModTime.IsZero() {
			e.ModTime = mtime
		}
		s = append(s, e)
	}
	dir := func(p string) { add(kiln.Entry{Path: p, Type: kiln.TypeDirectory, Mode: 0o755}) }
	link := func(p, to string) { add(kiln.Entry{Path: p, Type: kiln.TypeHardlink, Linkname: to}) }
	add(kiln.Entry{Path: ".", Type: kiln.TypeDirectory, Mode: 0o711, UID: 3, GID: 4})
	add(kiln.Entry{Path: "tmp", Type: kiln.TypeDirectory, Mode: 0o1777})
	for i := range 6500 { // children before and without parents
		add(pattern{seed: uint64(i), size: int64(i*37) % 9000}.entry(fmt.Sprintf("big/directory/file-%06d", i)))
	}
	for i := range 1500 {
		dir(fmt.Sprintf("many/sub%d", i))
		add(pattern{seed: uint64(i), size: int64(i % 3)}.entry(fmt.Sprintf("many/sub%d/%d", i, i)))
	}
	for i, size := range []int64{0, 1, 4095, 4096, 4097, 262143, 262144, 262145, 1 << 20, 5<<20 + 17} {
		add(pattern{seed: uint64(i), size: size}.entry(fmt.Sprintf("sizes/%d", size)))
	}
	add(pattern{seed: 1, size: 5 << 30, extents: []kiln.Extent{{Offset: 0, Length: 10}, {Offset: 1 << 30, Length: 300000}, {Offset: 5<<30 - 5000, Length: 5000}}}.entry("sparse/huge"))
	var many []kiln.Extent
	for i := range int64(1500) {
		many = append(many, kiln.Extent{Offset: i * 12288, Length: 4096})
	}
	add(pattern{seed: 2, size: 1500 * 12288, extents: many}.entry("sparse/many"))
	add(pattern{seed: 3, size: 1 << 20, extents: []kiln.Extent{}}.entry("sparse/nothing"))
	for _, n := range []int{1, 59, 60, 61, 255, 4000, 4095} {
		add(kiln.Entry{Path: fmt.Sprintf("links/%d", n), Type: kiln.TypeSymlink, Mode: 0o777, Linkname: strings.Repeat("x/", n)[:n]})
	}
	add(pattern{seed: 9, size: 100}.entry("names/" + strings.Repeat("n", 255)))
	add(pattern{seed: 9, size: 100}.entry("names/\xff\xfe not utf-8\n\t\x01"))
	add(pattern{seed: 9, size: 100}.entry("names/snow ☃"))
	for i, d := range [][2]uint32{{1, 3}, {0, 255}, {8, 0}, {300, 1}, {1, 70000}, {4095, 1<<20 - 1}} {
		add(kiln.Entry{Path: fmt.Sprintf("dev/c%d", i), Type: kiln.TypeCharDevice, Mode: 0o666, Major: d[0], Minor: d[1]})
		add(kiln.Entry{Path: fmt.Sprintf("dev/b%d", i), Type: kiln.TypeBlockDevice, Mode: 0o660, Major: d[0], Minor: d[1]})
	}
	add(kiln.Entry{Path: "dev/fifo", Type: kiln.TypeFIFO, Mode: 0o600})
	add(kiln.Entry{Path: "dev/socket", Type: kiln.TypeSocket, Mode: 0o600})
	for i := range 300 { // hardlinks of every kind, the link before the file too
		link(fmt.Sprintf("hard/a%d", i), "sizes/4097")
	}
	link("aaa-first", "links/4000")
	link("hard/sym", "links/59")
	link("hard/dev", "dev/c3")
	link("hard/chain", "hard/dev")
	link("hard/chain2", "hard/chain")
	for i, m := range []uint32{0o4755, 0o2755, 0o1644, 0o6711, 0, 0o7777} {
		e := pattern{seed: uint64(i), size: 10}.entry(fmt.Sprintf("modes/%o", m))
		e.Mode = m
		add(e)
	}
	for i, id := range []uint32{0, 65535, 65536, 1 << 24, 1<<32 - 2} {
		e := pattern{seed: uint64(i), size: 10}.entry(fmt.Sprintf("owners/%d", id))
		e.UID, e.GID = id, id/2
		add(e)
	}
	for i, sec := range []int64{-1 << 31, -1, 0, 1<<31 - 1, 1 << 31, 4102444800, 1<<33 + 5, 15032385535} {
		e := pattern{seed: uint64(i), size: 10}.entry(fmt.Sprintf("times/%d", i))
		e.ModTime = time.Unix(sec, int64(i)*123456).UTC()
		add(e)
	}
	attrs := func(p string, m map[string]string) {
		e := pattern{seed: 5, size: 5}.entry("xattrs/" + p)
		e.Xattrs = m
		add(e)
	}
	attrs("cap", map[string]string{"security.capability": netBind})
	attrs("acl", map[string]string{"system.posix_acl_access": acl(1000, 70000)})
	attrs("selinux", map[string]string{"security.selinux": "system_u:object_r:bin_t:s0\x00"})
	attrs("trusted", map[string]string{"trusted.x": "y", "user.empty": ""})
	for i := range 60 { // equal sets, too large for the inode: they share blocks
		attrs(fmt.Sprintf("shared%d", i), map[string]string{"user.same": strings.Repeat("s", 200)})
	}
	attrs("full", map[string]string{"user.full": strings.Repeat("f", 4000)})
	attrs("large", map[string]string{"user.large": strings.Repeat("l", 60000), "user.small": "s"})
	lots := map[string]string{}
	for i := range 40 {
		lots[fmt.Sprintf("user.name-%d", i)] = strings.Repeat("v", i*7)
	}
	attrs("lots", lots)
	add(kiln.Entry{Path: "xattrs/dir", Type: kiln.TypeDirectory, Mode: 0o750, Xattrs: map[string]string{
		"system.posix_acl_default": acl(5, 6), "system.posix_acl_access": acl(7, 8), "security.selinux": "label", "user.large": strings.Repeat("d", 5000)}})
	for i := range 500 {
		dir("deep/" + strings.TrimSuffix(strings.Repeat("d/", i+1), "/"))
	}
	rand.New(rand.NewPCG(7, 7)).Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
	return s
}

// writeImage writes src to a new image in a directory of its own.
func writeImage(t testing.TB, src kiln.EntrySource, opt ext4.Options) (string, ext4.Result) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.ext4")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	res, err := ext4.Write(context.Background(), src, f, opt)
	if err != nil {
		t.Fatal(err)
	}
	return path, res
}

// fsck fails the test unless e2fsck finds nothing at all to say.
func fsck(t testing.TB, path string) {
	t.Helper()
	out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	for _, l := range lines {
		if err != nil || !strings.HasPrefix(l, "e2fsck ") && !strings.HasPrefix(l, "Pass ") && !strings.HasPrefix(l, path+": ") {
			t.Fatalf("e2fsck: %v\n%s", err, out)
		}
	}
}

// mountImage mounts an image read-only through a loop device until the test ends.
func mountImage(t testing.TB, path string) string {
	t.Helper()
	at := t.TempDir()
	if out, err := exec.Command("mount", "-t", "ext4", "-o", "ro,loop", path, at).CombinedOutput(); err != nil {
		t.Fatalf("mount (this test needs root): %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return at
}

func describe(t testing.TB, src kiln.EntrySource) []Facts {
	t.Helper()
	f, err := Describe(context.Background(), src)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func openDir(t testing.TB, path string) kiln.EntrySource {
	t.Helper()
	d, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	src, err := FromDir(d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

func wantSame(t testing.TB, what string, want, got []Facts) {
	t.Helper()
	diff := Compare(want, got)
	for i, d := range diff {
		if i == 10 {
			t.Errorf("%s: … %d differences in all", what, len(diff))
			break
		}
		t.Errorf("%s: %.300s", what, d)
	}
}

// roundTrip checks an image of src in every way there is: e2fsck, our own reader, and a
// walk over what the kernel shows of it.
func roundTrip(t testing.TB, src kiln.EntrySource, opt ext4.Options) string {
	t.Helper()
	path, res := writeImage(t, src, opt)
	fsck(t, path)
	want := describe(t, src)
	im, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	wantSame(t, "reader", want, describe(t, im))
	wantSame(t, "kernel", want, describe(t, openDir(t, mountImage(t, path))))
	if im.Size() != res.Size {
		t.Errorf("image has %d bytes, Write said %d", im.Size(), res.Size)
	}
	return path
}

func TestStressTreeRoundTrip(t *testing.T) {
	s := stressTree()
	if len(s) < 10000 {
		t.Fatalf("only %d entries", len(s))
	}
	path := roundTrip(t, s, ext4.Options{})
	// Writing the image's own entries again gives the image.
	im, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	again, _ := writeImage(t, im, ext4.Options{})
	a, _ := os.ReadFile(path)
	b, _ := os.ReadFile(again)
	if !bytes.Equal(a, b) {
		t.Error("an image of the image differs from it")
	}
}
