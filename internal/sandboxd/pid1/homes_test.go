package pid1

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRegularUsers(t *testing.T) {
	passwd := `root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
maker:x:1000:1000:Maker,,,:/home/maker:/bin/bash
other:x:1001:100::/srv//other/:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin

# a comment
short:x:1002:1002
number:x:one:1002::/home/number:/bin/sh
relative:x:1003:1003::home/relative:/bin/sh
top:x:1004:1004::/:/bin/sh
none:x:1005:1005:::/bin/sh
negative:x:-1:1000::/home/negative:/bin/sh
`
	want := []user{{"maker", 1000, 1000, "/home/maker"}, {"other", 1001, 100, "/srv/other"}}
	if got := regularUsers([]byte(passwd)); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestSeedHome(t *testing.T) {
	maker := user{"maker", 1000, 1001, "/home/maker"}
	const skeleton = "/etc/skel/agent-skel"
	makeSkeleton := func(t *testing.T, root string) {
		skel := filepath.Join(root, skeleton)
		try(t, os.MkdirAll(filepath.Join(skel, "bin"), 0o755))
		try(t, os.WriteFile(filepath.Join(skel, "bin/tool"), []byte("#!/bin/sh\n"), 0o750))
		try(t, os.Symlink("bin/tool", filepath.Join(skel, "link")))
		try(t, unix.Mkfifo(filepath.Join(skel, "fifo"), 0o600))
	}
	for name, c := range map[string]struct {
		prepare func(t *testing.T, root string)
		want    map[string]os.FileMode // what is in the home afterwards
	}{
		"no home": {makeSkeleton, map[string]os.FileMode{"bin": os.ModeDir | 0o755, "bin/tool": 0o750, "link": os.ModeSymlink | 0o777}},
		"empty home": {func(t *testing.T, root string) {
			makeSkeleton(t, root)
			try(t, os.MkdirAll(filepath.Join(root, maker.home), 0o755))
		}, map[string]os.FileMode{"bin": os.ModeDir | 0o755, "bin/tool": 0o750, "link": os.ModeSymlink | 0o777}},
		"home in use": {func(t *testing.T, root string) {
			makeSkeleton(t, root)
			try(t, os.MkdirAll(filepath.Join(root, maker.home, "mine"), 0o711))
			try(t, os.Chown(filepath.Join(root, maker.home, "mine"), 1000, 1001))
		}, map[string]os.FileMode{"mine": os.ModeDir | 0o711}},
		"no skeleton": {func(*testing.T, string) {}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			c.prepare(t, root)
			if err := seedHome(root, skeleton, maker); err != nil {
				t.Fatal(err)
			}
			got := map[string]os.FileMode{}
			home := filepath.Join(root, maker.home)
			try(t, filepath.WalkDir(home, func(path string, _ os.DirEntry, err error) error {
				try(t, err)
				info, err := os.Lstat(path)
				try(t, err)
				if rel, _ := filepath.Rel(home, path); rel != "." {
					got[rel] = info.Mode()
				} else if name == "home in use" {
					return nil
				}
				var st unix.Stat_t
				try(t, unix.Lstat(path, &st))
				if st.Uid != 1000 || st.Gid != 1001 {
					t.Errorf("%s belongs to %d:%d", path, st.Uid, st.Gid)
				}
				return nil
			}))
			if len(got) != len(c.want) || len(got) > 0 && !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// The top of the writable layer must not show in place of the image's root directory.
func TestCopyRootAttributes(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	try(t, os.Chown(from, 12, 34))
	try(t, os.Chmod(from, 0o711|os.ModeSetgid))
	try(t, unix.Setxattr(from, "user.note", []byte("kept"), 0))
	changed := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
	try(t, os.Chtimes(from, changed, changed))
	try(t, copyRootAttributes(from, to))

	var st unix.Stat_t
	try(t, unix.Stat(to, &st))
	if st.Uid != 12 || st.Gid != 34 || st.Mode&0o7777 != 0o2711 || st.Mtim.Nano() != changed.UnixNano() {
		t.Errorf("got %d:%d, mode %o, time %v", st.Uid, st.Gid, st.Mode, time.Unix(0, st.Mtim.Nano()))
	}
	value := make([]byte, 16)
	if n, err := unix.Getxattr(to, "user.note", value); err != nil || string(value[:n]) != "kept" {
		t.Errorf("attribute: %q, %v", value[:max(n, 0)], err)
	}
}

func try(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
