package sandboxd

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"connectrpc.com/connect"

	"github.com/kilnvm/kiln/internal/sandboxd/imagefile"
)

// account is whom a command runs as.
type account struct {
	name     string // the number when the user database has no entry
	uid, gid uint32
	groups   []uint32 // supplementary
	home     string
}

// accounts reads the user database of the image: the files /etc/passwd and /etc/group,
// which is all that an image can be counted on to have. They are read afresh for every
// request, because users may be added at any time.
type accounts struct{ root string }

type passwdEntry struct {
	name     string
	uid, gid uint32
	home     string
}

type groupEntry struct {
	name    string
	gid     uint32
	members []string
}

// lookup finds who spec means, in the notation of an image's USER: a name or number,
// optionally with ":" and a group name or number. A user number needs no entry; a name
// does. As in Docker, an explicit group replaces the supplementary ones.
func (a accounts) lookup(spec string) (account, error) {
	user, group, explicit := strings.Cut(spec, ":")
	found, err := a.user(user)
	if err != nil {
		return account{}, err
	}
	if !explicit || group == "" {
		found.groups, err = a.supplementary(found)
		return found, err
	}
	found.gid, err = a.group(group)
	return found, err
}

func (a accounts) user(user string) (account, error) {
	entries, err := a.passwd()
	if err != nil {
		return account{}, err
	}
	uid, numeric := parseID(user)
	for _, e := range entries {
		if e.name == user || numeric && e.uid == uid {
			return account{name: e.name, uid: e.uid, gid: e.gid, home: homeOf(e)}, nil
		}
	}
	switch {
	case numeric:
		return account{name: user, uid: uid, home: "/"}, nil
	case user == "root": // an image without /etc/passwd still has the kernel's root
		return account{name: "root", home: "/root"}, nil
	}
	return account{}, errorf(connect.CodeUnauthenticated, "user %q does not exist in the sandbox", user)
}

func homeOf(e passwdEntry) string {
	if filepath.IsAbs(e.home) {
		return filepath.Clean(e.home)
	}
	return "/"
}

func (a accounts) group(group string) (uint32, error) {
	entries, err := a.groups()
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if e.name == group {
			return e.gid, nil
		}
	}
	if gid, numeric := parseID(group); numeric {
		return gid, nil
	}
	return 0, errorf(connect.CodeUnauthenticated, "group %q does not exist in the sandbox", group)
}

func (a accounts) supplementary(of account) ([]uint32, error) {
	entries, err := a.groups()
	if err != nil {
		return nil, err
	}
	var gids []uint32
	for _, e := range entries {
		if e.gid != of.gid && slices.Contains(e.members, of.name) {
			gids = append(gids, e.gid)
		}
	}
	return gids, nil
}

func (a accounts) passwd() ([]passwdEntry, error) {
	var entries []passwdEntry
	err := a.scan("etc/passwd", 7, func(f []string) {
		uid, ok1 := parseID(f[2])
		gid, ok2 := parseID(f[3])
		if ok1 && ok2 {
			entries = append(entries, passwdEntry{name: f[0], uid: uid, gid: gid, home: f[5]})
		}
	})
	return entries, err
}

func (a accounts) groups() ([]groupEntry, error) {
	var entries []groupEntry
	err := a.scan("etc/group", 4, func(f []string) {
		if gid, ok := parseID(f[2]); ok {
			entries = append(entries, groupEntry{name: f[0], gid: gid, members: strings.Split(f[3], ",")})
		}
	})
	return entries, err
}

// scan calls each for every well-formed line of a colon-separated file. A missing file has
// no lines.
func (a accounts) scan(name string, fields int, each func([]string)) error {
	text, err := imagefile.Read(filepath.Join(a.root, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if parts := strings.Split(strings.TrimSpace(line), ":"); len(parts) >= fields {
			each(parts)
		}
	}
	return nil
}

func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil
}

// names translates owners of files. It serves one request.
type names struct{ users, groups map[uint32]string }

func (a accounts) names() (names, error) {
	users, err := a.passwd()
	if err != nil {
		return names{}, err
	}
	groups, err := a.groups()
	if err != nil {
		return names{}, err
	}
	n := names{users: map[uint32]string{}, groups: map[uint32]string{}}
	for _, u := range slices.Backward(users) { // of two entries with one number the first names it
		n.users[u.uid] = u.name
	}
	for _, g := range slices.Backward(groups) {
		n.groups[g.gid] = g.name
	}
	return n, nil
}

func nameOf(m map[uint32]string, id uint32) string {
	if name, ok := m[id]; ok {
		return name
	}
	return strconv.FormatUint(uint64(id), 10)
}
