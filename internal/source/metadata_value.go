package source

import (
	"fmt"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/kilnvm/kiln"
)

// value is one value of a metadata file and the place where it stands. Its methods store
// it in a field or say what is wrong with it, naming key and line.
type value struct {
	p    *metadataParser
	key  toml.Key
	prim toml.Primitive
	line int
}

func (v value) errorf(format string, args ...any) error {
	return metadataError(v.p.file, v.line, "%s: %s", v.key, fmt.Sprintf(format, args...))
}

// decode stores the value in dst, which takes what want describes.
func (v value) decode(dst any, want string) error {
	if err := v.p.md.PrimitiveDecode(v.prim, dst); err != nil {
		return v.mismatch(want)
	}
	return nil
}

// decodeTable is decode for maps, which the library leaves alone without an error when
// the value is no table.
func (v value) decodeTable(dst any, want string) error {
	if !v.isTable() {
		return v.mismatch(want)
	}
	return v.decode(dst, want)
}

// isTable tells whether the value is a table, be it one that only its own tables imply: the
// library knows no type of that.
func (v value) isTable() bool {
	kind := v.p.md.Type(v.key...)
	return kind == "Hash" || kind == "" && len(v.p.keys(v.key)) > 0
}

func (v value) mismatch(want string) error {
	found := article(v.p.md.Type(v.key...))
	if strings.HasPrefix(want, "a list") && found == "an array" {
		found = "a list with something else in it"
	}
	return v.errorf("want %s, found %s", want, found)
}

// article turns the library's name of a TOML type into words.
func article(tomlType string) string {
	switch tomlType {
	case "Integer", "Array":
		return "an " + strings.ToLower(tomlType)
	case "Hash", "":
		return "a table"
	}
	return "a " + strings.ToLower(tomlType)
}

func (v value) text(dst *string) error {
	if err := v.decode(dst, "a string"); err != nil {
		return err
	}
	if err := checkText(v.key[len(v.key)-1], *dst); err != nil {
		return v.errorf("%v", err)
	}
	return nil
}

func (v value) name(dst *string) error {
	if err := v.text(dst); err != nil {
		return err
	}
	if err := kiln.CheckTemplateName(*dst); err != nil {
		return v.errorf("%v", err)
	}
	return nil
}

func (v value) size(dst *string) error {
	if err := v.text(dst); err != nil {
		return err
	}
	if _, err := kiln.SizeByName(*dst); err != nil {
		return v.errorf("%v", err)
	}
	return nil
}

func (v value) disk(dst *int) error {
	if err := v.decode(dst, "a whole number of MiB"); err != nil {
		return err
	}
	if err := checkDisk(*dst); err != nil {
		return v.errorf("%v", err)
	}
	return nil
}

// initSystem reads the name of an init system.
func (v value) initSystem(dst *string) error {
	if err := v.text(dst); err != nil {
		return err
	}
	if err := checkInit(*dst); err != nil {
		return v.errorf("%v", err)
	}
	return nil
}

func checkInit(name string) error {
	if name != "" && name != kiln.InitSystemd {
		return fmt.Errorf("%q is not %q, the only init system there is beside Kiln's own", name, kiln.InitSystemd)
	}
	return nil
}

// baseList reads one name of an image or a list of them.
func (v value) baseList(dst *[]string) error {
	if v.p.md.Type(v.key...) == "String" {
		*dst = make([]string, 1)
		if err := v.text(&(*dst)[0]); err != nil {
			return err
		}
	} else if err := v.decode(dst, "a list of image names"); err != nil {
		return err
	}
	if err := checkBases(*dst); err != nil {
		return v.errorf("%v", err)
	}
	return nil
}

// tags reads the words that a template can be found by.
func (v value) tags(dst *[]string) error {
	if err := v.decode(dst, "a list of strings"); err != nil {
		return err
	}
	if err := checkTags(*dst); err != nil {
		return v.errorf("%v", err)
	}
	return nil
}

func checkDisk(mb int) error {
	if mb < 1 || mb > kiln.MaxDiskMB {
		return fmt.Errorf("%d is not between 1 and %d MiB", mb, kiln.MaxDiskMB)
	}
	return nil
}

// env reads an environment.
func (v value) env(dst *map[string]string) error { return v.strings(dst, "env", kiln.CheckEnv) }

// strings reads a table of strings and has each of its entries checked, and all together.
// Errors of check may begin with what.
func (v value) strings(dst *map[string]string, what string, check func(map[string]string) error) error {
	if !v.isTable() {
		return v.mismatch("a table of strings")
	}
	checked := func(at value, pairs map[string]string) error {
		if err := check(pairs); err != nil {
			return at.errorf("%s", strings.TrimLeft(strings.TrimPrefix(err.Error(), what), ": "))
		}
		return nil
	}
	*dst = map[string]string{}
	err := v.p.entries(v, func(name string, entry value) error {
		var text string
		if err := entry.decode(&text, "a string"); err != nil {
			return err
		}
		(*dst)[name] = text
		return checked(entry, map[string]string{name: text})
	})
	if err != nil {
		return err
	}
	return checked(v, *dst)
}
