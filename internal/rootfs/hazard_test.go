package rootfs

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/ext4"
	"github.com/kilnvm/kiln/internal/rootfs/rootfstest"
)

// rawHeader makes a header block by hand, with everything that archive/tar would refuse.
func rawHeader(name string, flag byte, size int64, link string, change func(b []byte)) []byte {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], "0000644\x00")
	copy(b[108:], "0000000\x00")
	copy(b[116:], "0000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00", size))
	copy(b[136:], "00000000000\x00")
	b[156] = flag
	copy(b[157:257], link)
	copy(b[257:], "ustar\x0000")
	if change != nil {
		change(b)
	}
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func body(s string) []byte {
	return append([]byte(s), make([]byte, (512-len(s)%512)%512)...)
}

func paxHeader(records ...string) []byte {
	var all string
	for i := 0; i+1 < len(records); i += 2 {
		kv := records[i] + "=" + records[i+1] + "\n"
		n := len(kv) + 2
		for len(fmt.Sprint(n))+1+len(kv) != n {
			n = len(fmt.Sprint(n)) + 1 + len(kv)
		}
		all += fmt.Sprintf("%d %s", n, kv)
	}
	return append(rawHeader("pax", 'x', int64(len(all)), "", nil), body(all)...)
}

func rawPAX(text string) []byte {
	return append(rawHeader("pax", 'x', int64(len(text)), "", nil), body(text)...)
}

// hostile is one archive and what must become of it: refused with an error that has all
// of the given words, or harmless.
type hostile struct {
	name     string
	archive  []byte
	wants    []string // nil: harmless
	harmless bool
}

func cat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func file(name, content string) []byte {
	return cat(rawHeader(name, '0', int64(len(content)), "", nil), body(content))
}

func hostileCorpus() []hostile {
	var all []hostile
	refused := func(name string, archive []byte, wants ...string) {
		all = append(all, hostile{name: name, archive: archive, wants: wants})
	}
	harmless := func(name string, archive []byte) {
		all = append(all, hostile{name: name, archive: archive, harmless: true})
	}
	dotdot := []string{"../x", "a/../x", "a/b/../../x", "..", "a/..", "./../x", "/../x", "a//../x", "../../../../etc/passwd", "x/../../y"}
	for _, p := range dotdot {
		for _, flag := range []byte("012345673") {
			refused(fmt.Sprintf("dotdot %q type %c", p, flag), rawHeader(p, flag, 0, "t", nil), "entry", `".."`)
		}
		refused("pax path "+p, cat(paxHeader("path", p), rawHeader("ok", '0', 0, "", nil)), "entry", `".."`)
		refused("gnu long name "+p, cat(rawHeader("@LongLink", 'L', int64(len(p)), "", nil), body(p), rawHeader("ok", '0', 0, "", nil)), "entry", `".."`)
		refused("hardlink to "+p, cat(file("ok", "x"), rawHeader("evil", '1', 0, p, nil)), `entry "evil"`, `".."`)
		refused("pax hardlink to "+p, cat(paxHeader("linkpath", p), rawHeader("evil", '1', 0, "ok", nil)), `entry "evil"`, `".."`)
	}
	for _, p := range []string{"/etc/passwd", "//etc/passwd", "/", "/x/", "///", "./x", "./", "a//b", "a/./b"} {
		harmless("absolute or odd path "+p, rawHeader(p, '5', 0, "", nil))
		harmless("symlink to "+p, rawHeader("l", '2', 0, p, nil))
	}
	for _, to := range []string{"/etc/passwd", "../../../../etc/passwd", "/proc/self/root", "."} {
		harmless("symlink to "+to, rawHeader("l", '2', 0, to, nil))
		refused("file below symlink to "+to, cat(rawHeader("l", '2', 0, to, nil), file("l/x", "evil")), `"l/x"`, "not a directory")
		refused("directory below symlink to "+to, cat(rawHeader("l", '2', 0, to, nil), rawHeader("l/x/y", '5', 0, "", nil)), "l", "not a directory")
		refused("hardlink below symlink to "+to, cat(file("f", "x"), rawHeader("l", '2', 0, to, nil), rawHeader("l/x", '1', 0, "f", nil)), `"l/x"`, "not a directory")
		refused("file before its symlink ancestor to "+to, cat(file("l/x", "evil"), rawHeader("l", '2', 0, to, nil)), `"l/x"`, "not a directory")
	}
	refused("file below a file", cat(file("f", "x"), file("f/g", "y")), `"f/g"`, "not a directory")
	refused("file below a fifo", cat(rawHeader("f", '6', 0, "", nil), file("f/g", "y")), `"f/g"`, "not a directory")
	refused("file below a hardlink", cat(file("a", "x"), rawHeader("f", '1', 0, "a", nil), file("f/g", "y")), `"f/g"`, "not a directory")
	refused("hardlink to nothing", rawHeader("h", '1', 0, "nothing", nil), `entry "h"`, "nothing")
	refused("hardlink to itself", rawHeader("h", '1', 0, "h", nil), `entry "h"`)
	refused("hardlinks in a ring", cat(rawHeader("a", '1', 0, "b", nil), rawHeader("b", '1', 0, "a", nil)), `entry "a"`)
	refused("hardlink to a directory", cat(rawHeader("d", '5', 0, "", nil), rawHeader("h", '1', 0, "d", nil)), `entry "h"`, "directory")
	refused("hardlink to the root", rawHeader("h", '1', 0, "./", nil), `entry "h"`, "directory")
	refused("hardlink without a target", rawHeader("h", '1', 0, "", nil), `entry "h"`)
	refused("symlink without a target", rawHeader("s", '2', 0, "", nil), `entry "s"`)
	refused("symlink with a target of 5000 bytes", cat(paxHeader("linkpath", strings.Repeat("x", 5000)), rawHeader("s", '2', 0, "", nil)), `entry "s"`)
	refused("root as a file", file("./", "x")[:0:0], "")
	all = all[:len(all)-1]
	refused("root as a symlink", rawHeader(".", '2', 0, "/", nil), "root")
	refused("root as a device", rawHeader("./", '3', 0, "", nil), "root")
	for _, n := range []int{256, 300, 5000, 60000} {
		long := strings.Repeat("n", n)
		refused(fmt.Sprintf("name of %d bytes", n), cat(paxHeader("path", long), rawHeader("x", '0', 0, "", nil)), "entry", "255")
		refused(fmt.Sprintf("inner name of %d bytes", n), cat(paxHeader("path", "a/"+long+"/b"), rawHeader("x", '0', 0, "", nil)), "entry", "255")
	}
	refused("path of 70000 bytes", cat(paxHeader("path", strings.Repeat("d/", 35000)+"f"), rawHeader("x", '0', 0, "", nil)), "entry", "path")
	harmless("path of 20000 bytes", cat(paxHeader("path", strings.Repeat("d/", 10000)+"f"), rawHeader("x", '0', 0, "", nil)))
	refused("NUL in a PAX path", cat(paxHeader("path", "a\x00b"), rawHeader("x", '0', 0, "", nil)), "entry", "NUL")
	refused("NUL in a PAX link", cat(paxHeader("linkpath", "a\x00b"), rawHeader("x", '2', 0, "", nil)), `entry "x"`, "NUL")
	refused("empty name", rawHeader("", '0', 0, "", nil), "empty")
	for i, size := range []int64{1, 512, 1 << 20, 1 << 32} {
		refused(fmt.Sprintf("size lie %d", i), rawHeader("big", '0', size, "", nil), `entry "big"`, "claims")
	}
	refused("negative size", rawHeader("neg", '0', 0, "", func(b []byte) { copy(b[124:136], bytes.Repeat([]byte{0xff}, 12)) }), `entry "neg"`, "size")
	refused("huge base-256 size", rawHeader("huge", '0', 0, "", func(b []byte) { copy(b[124:136], append([]byte{0x80}, bytes.Repeat([]byte{0x7f}, 11)...)) }), `entry "huge"`, "size")
	refused("base-256 size of 2^63-1", rawHeader("huge", '0', 0, "", func(b []byte) { copy(b[124:136], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff") }), `entry "huge"`)
	for _, v := range []string{"-1", "99999999999999999999", "abc", "1e9", "0x10"} {
		refused("pax size "+v, cat(paxHeader("size", v), rawHeader("p", '0', 0, "", nil)), `entry "p"`, "size")
		refused("pax uid "+v, cat(paxHeader("uid", v), rawHeader("p", '0', 0, "", nil)), `entry "p"`, "owner")
		refused("pax gid "+v, cat(paxHeader("gid", v), rawHeader("p", '0', 0, "", nil)), `entry "p"`, "group")
		if v != "-1" {
			refused("pax mtime "+v, cat(paxHeader("mtime", v), rawHeader("p", '0', 0, "", nil)), `entry "p"`, "time")
		}
	}
	harmless("time before 1901", cat(paxHeader("mtime", "-99999999999"), rawHeader("p", '0', 0, "", nil)))
	harmless("time after 2446", cat(paxHeader("mtime", "99999999999"), rawHeader("p", '0', 0, "", nil)))
	for _, text := range []string{"0 a=b\n", "5 a=b", "99 a=b\n", "x a=b\n", "8 a=b\n", "7 abcd\n", "-6 a=b\n", " 6 a=b\n", "99999999999999999999 a=b\n", "6 =b\n\n"} {
		refused(fmt.Sprintf("pax record %q", text), cat(rawPAX(text), rawHeader("p", '0', 0, "", nil)), "PAX")
	}
	refused("pax header of 2 MiB", cat(rawHeader("pax", 'x', 2<<20, "", nil), make([]byte, 2<<20), rawHeader("p", '0', 0, "", nil)), "extended header")
	refused("long name of 2 MiB", cat(rawHeader("l", 'L', 2<<20, "", nil), make([]byte, 2<<20), rawHeader("p", '0', 0, "", nil)), "extended header")
	refused("only extended headers", bytes.Repeat(paxHeader("a", "b"), 100), "extended headers")
	refused("extended header at the end", paxHeader("path", "x"), "cut short")
	refused("extended header before the zero blocks", cat(paxHeader("path", "x"), make([]byte, 1024)), "without a member")
	for _, flag := range []byte("8ZAN\xff") {
		refused(fmt.Sprintf("type %q", flag), rawHeader("t", flag, 0, "", nil), `entry "t"`, "type")
	}
	for _, n := range []int{1, 100, 511} {
		refused(fmt.Sprintf("header of %d bytes", n), file("x", "")[:n], "cut short")
		refused(fmt.Sprintf("second header of %d bytes", n), cat(file("x", "hello"), file("y", "")[:n]), "cut short", `after "x"`)
	}
	refused("wrong checksum", func() []byte { b := rawHeader("x", '0', 0, "", nil); b[0] = 'y'; return b }(), "checksum")
	refused("garbage", bytes.Repeat([]byte("garbage!"), 64), "checksum")
	refused("mode with bits beyond 32", rawHeader("m", '0', 0, "", func(b []byte) { copy(b[100:108], "\x80\x00\x01\x00\x00\x00\x00\x00") }), `entry "m"`, "mode")
	refused("device number too large", rawHeader("d", '3', 0, "", func(b []byte) { copy(b[329:337], "7777777\x00") }), `entry "d"`, "device")
	refused("minor number too large", rawHeader("d", '4', 0, "", func(b []byte) { copy(b[337:345], "7777777\x00") }), `entry "d"`, "device")
	harmless("device", rawHeader("dev/sda", '4', 0, "", func(b []byte) { copy(b[329:337], "0000010\x00") }))
	sparse := func(m, real string, data string) []byte {
		return cat(paxHeader("GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.map", m, "GNU.sparse.realsize", real, "GNU.sparse.size", real),
			rawHeader("s", '0', int64(len(data)), "", nil), body(data))
	}
	for i, c := range [][2]string{{"0,5", "-1"}, {"0,5", "x"}, {"0,5,3,5", "10"}, {"5,5,0,5", "10"}, {"0,100", "10"}, {"0,-5", "10"}, {"-5,5", "10"}, {"0,5,x,1", "10"}, {"0", "10"}, {"0,9223372036854775807", "9223372036854775807"}, {"9223372036854775807,1", "9223372036854775807"}, {"0,6", "10"}} {
		refused(fmt.Sprintf("sparse lie %d: %v", i, c), sparse(c[0], c[1], "hello"), `entry "s"`)
	}
	harmless("sparse file of a terabyte", sparse("0,5", "1099511627776", "hello"))
	refused("sparse file beyond 16 TiB", sparse("0,5", "99999999999999", "hello"), `entry "s"`, "size")
	for i, m := range []string{"", "1\n", "x\n", "999999999\n", "1\n0\n", "2\n0\n5\n3\n5\n", "-1\n", strings.Repeat("1", 600)} {
		data := string(body(m))
		refused(fmt.Sprintf("sparse 1.0 map %d", i), cat(paxHeader("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "10"),
			rawHeader("s", '0', int64(len(data)), "", nil), []byte(data)), `entry "s"`)
	}
	old := func(off, length, real string, ext byte) []byte {
		return rawHeader("s", 'S', 5, "", func(b []byte) {
			copy(b[386:], off)
			copy(b[398:], length)
			b[482] = ext
			copy(b[483:], real)
		})
	}
	refused("old sparse beyond its size", cat(old("00000000000\x00", "00000000005\x00", "00000000001\x00", 0), body("hello")), `entry "s"`)
	refused("old sparse with an endless map", cat(old("00000000000\x00", "00000000005\x00", "00000000005\x00", 1)), `entry "s"`)
	refused("old sparse with words", cat(old("hello world\x00", "00000000005\x00", "00000000005\x00", 0), body("hello")), `entry "s"`)
	xattr := func(k, v string) []byte { return cat(paxHeader("SCHILY.xattr."+k, v), file("x", "")) }
	refused("attribute of 70000 bytes", xattr("user.a", strings.Repeat("v", 70000)), `entry "x"`, "attribute")
	refused("attribute name of 300 bytes", xattr("user."+strings.Repeat("n", 300), "v"), `entry "x"`, "attribute")
	refused("ACL of garbage", xattr("system.posix_acl_access", "garbage"), `entry "x"`, "ACL")
	refused("ACL of a wrong version", xattr("system.posix_acl_access", "\x09\x00\x00\x00"), `entry "x"`, "ACL")
	refused("ACL with an unknown tag", xattr("system.posix_acl_access", "\x02\x00\x00\x00\x77\x00\x07\x00\x00\x00\x00\x00"), `entry "x"`, "ACL")
	harmless("attribute of an unknown kind", xattr("system.nfs4_acl", "x"))
	harmless("attribute without a prefix", xattr("strange", "x"))
	refused("base64 attribute of garbage", cat(paxHeader("LIBARCHIVE.xattr.user.a", "***"), file("x", "")), `entry "x"`, "attribute")
	var many []string
	for i := range 900 {
		many = append(many, fmt.Sprintf("SCHILY.xattr.user.%d-%s", i, strings.Repeat("n", 200)), "")
	}
	for i := 1; i < len(many); i += 2 {
		many[i] = "v"
	}
	refused("attribute names beyond a block", cat(paxHeader(many...), file("x", "")), `entry "x"`, "attribute")
	for i := 0; i < 3000; i++ {
		many = append(many, fmt.Sprintf("SCHILY.xattr.user.m%d", i), "v")
	}
	refused("too many attributes", cat(paxHeader(many...), file("x", "")), "")
	harmless("no zero blocks at the end", file("x", "y"))
	harmless("garbage after the end", cat(file("x", "y"), make([]byte, 1024), []byte("garbage")))
	harmless("empty", nil)
	harmless("same path 1000 times", bytes.Repeat(file("x", "y"), 1000))
	harmless("socket", cat(file("x", "y")))
	harmless("directory, then a file of that name", cat(rawHeader("d", '5', 0, "", nil), file("d", "x")))
	return all
}

func TestHazard20HostileArchives(t *testing.T) {
	corpus := hostileCorpus()
	if len(corpus) < 200 {
		t.Fatalf("only %d archives", len(corpus))
	}
	dir := t.TempDir()
	for i, h := range corpus {
		t.Run(fmt.Sprintf("%d %.60q", i, h.name), func(t *testing.T) {
			out := filepath.Join(dir, "image")
			err := writeTar(h.archive, out, DefaultLimits)
			if h.harmless {
				if err != nil {
					t.Fatal(err)
				}
				rootfstest.Fsck(t, out)
				os.Remove(out)
				return
			}
			if err == nil {
				os.Remove(out)
				t.Fatal("accepted")
			}
			if kiln.CodeOf(err) != kiln.CodeInvalid {
				t.Errorf("error has the code %s: %v", kiln.CodeOf(err), err)
			}
			for _, w := range h.wants {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error does not say %q: %.500v", w, err)
				}
			}
			if len(err.Error()) > 2000 {
				t.Errorf("error has %d bytes", len(err.Error()))
			}
			if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("something was left behind")
			}
		})
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func writeTar(archive []byte, out string, limits Limits) error {
	src, err := FromTarLimited(bytes.NewReader(archive), limits)
	if err != nil {
		return err
	}
	defer src.Close()
	_, err = Write(context.Background(), src, out)
	return err
}

func TestHazard20Bombs(t *testing.T) {
	limits := Limits{Entries: 1000, Bytes: 1 << 20}
	var z bytes.Buffer
	gz := gzip.NewWriter(&z)
	io.CopyN(gz, zeros{}, 64<<20) // a thousand times as large as its archive
	gz.Close()
	var entries bytes.Buffer
	for i := range 1001 {
		entries.Write(rawHeader(fmt.Sprint(i), '5', 0, "", nil))
	}
	for name, c := range map[string]struct {
		archive []byte
		want    string
	}{
		"bytes":   {z.Bytes(), "unpacks to more than"},
		"entries": {entries.Bytes(), "more than 1000 entries"},
		"content": {cat(file("a", strings.Repeat("x", 600<<10)), file("b", strings.Repeat("y", 300<<10)), file("c", strings.Repeat("y", 90<<10)), file("d", strings.Repeat("y", 90<<10))), "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			err := writeTar(c.archive, filepath.Join(t.TempDir(), "image"), limits)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if time.Since(start) > 10*time.Second {
				t.Error("it took too long")
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Archives of other tools: what tar writes must come out as what tar extracts.
func TestTarFormats(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	mtime := time.Unix(1700000000, 123456789)
	for _, h := range []tar.Header{
		{Name: "pax/" + strings.Repeat("long/", 60) + "f", Size: 3, Format: tar.FormatPAX, ModTime: mtime, Uid: 3000000},
		{Name: "gnu/" + strings.Repeat("long/", 60) + "f", Size: 3, Format: tar.FormatGNU, ModTime: mtime},
		{Name: "ustar/f", Size: 3, Format: tar.FormatUSTAR, ModTime: mtime},
		{Name: "x", Size: 3, Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "\x00bin", "LIBARCHIVE.xattr.user.b": "dmFsdWU"}},
	} {
		h.Typeflag, h.Mode = tar.TypeReg, 0o640
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, "abc")
	}
	w.Close()
	src, err := FromTar(&b)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	got := map[string]kiln.Entry{}
	for e, err := range src.Entries() {
		if err != nil {
			t.Fatal(err)
		}
		got[e.Path[:strings.IndexByte(e.Path+"/", '/')]] = e
	}
	if e := got["pax"]; len(e.Path) != 305 || !e.ModTime.Equal(mtime) || e.UID != 3000000 || e.Mode != 0o640 {
		t.Errorf("PAX: %+v", e)
	}
	if e := got["gnu"]; len(e.Path) != 305 || e.ModTime.Unix() != mtime.Unix() {
		t.Errorf("GNU: %+v", e)
	}
	if e := got["x"]; e.Xattrs["user.a"] != "\x00bin" || e.Xattrs["user.b"] != "value" {
		t.Errorf("attributes: %q", e.Xattrs)
	}
	_ = roundTrip(t, src, ext4.Options{})
}
