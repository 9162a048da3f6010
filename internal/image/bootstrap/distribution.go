package bootstrap

import (
	"strings"

	"github.com/kilnvm/kiln/internal/image/base"
)

// distribution is one release that can be bootstrapped.
type distribution struct {
	family   family
	codename string
	tags     []string // besides the codename
}

// family is what releases of one distribution have in common.
type family struct {
	id         string // of /etc/os-release; also the image's name
	components []string
	archive    string // public default
	security   string // public default
	keyring    string // where the distribution's keyring package puts it
	keyPackage string
	slim       bool // has "-slim" variants
}

func debian() family {
	return family{
		id:         "debian",
		components: []string{"main"},
		archive:    "http://deb.debian.org/debian",
		security:   "http://deb.debian.org/debian-security",
		keyring:    "/usr/share/keyrings/debian-archive-keyring.gpg",
		keyPackage: "debian-archive-keyring",
		slim:       true,
	}
}

func ubuntu() family {
	return family{
		id:         "ubuntu",
		components: []string{"main", "restricted", "universe", "multiverse"},
		archive:    "http://archive.ubuntu.com/ubuntu",
		security:   "http://security.ubuntu.com/ubuntu",
		keyring:    "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
		keyPackage: "ubuntu-keyring",
	}
}

func distributions() []distribution {
	return []distribution{
		{debian(), "bookworm", []string{"12"}},
		{debian(), "trixie", []string{"13", "stable", "latest"}},
		{ubuntu(), "noble", []string{"24.04", "latest"}},
	}
}

// target is what one image name asks for.
type target struct {
	distribution
	slim bool
}

// canonical is the name under which every alias of a target is stored as well.
func (t target) canonical() string {
	name := t.family.id + ":" + t.codename
	if t.slim {
		name += slimSuffix
	}
	return name
}

const slimSuffix = "-slim"

// find maps an image name to a target. Only names of the official images count: a
// "debian" in somebody's registry is another image.
func find(name base.Name) (target, bool) {
	if name.Domain() != "docker.io" || name.Digest() != "" {
		return target{}, false
	}
	tag, slim := strings.CutSuffix(name.Tag(), slimSuffix)
	for _, d := range distributions() {
		if name.Path() != "library/"+d.family.id || slim && !d.family.slim {
			continue
		}
		for _, t := range append(d.tags, d.codename) {
			if t == tag {
				return target{d, slim}, true
			}
		}
	}
	return target{}, false
}

// names lists all supported names, for people.
func names() string {
	var list []string
	for _, d := range distributions() {
		suffix := ""
		if d.family.slim {
			suffix = "[-slim]"
		}
		for _, t := range append([]string{d.codename}, d.tags...) {
			list = append(list, d.family.id+":"+t+suffix)
		}
	}
	return strings.Join(list, ", ")
}
