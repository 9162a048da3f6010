package imagefile

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMapping(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	if err := Write(path, []byte("first line\nname: xxxx\n"), 0o444); err != nil {
		t.Fatal(err)
	}
	m, err := Map(path)
	if err != nil {
		t.Fatal(err)
	}
	if !m.Replace("mine\n") {
		t.Error("not replaced")
	}
	if got, _ := os.ReadFile(path); string(got) != "first line\nname: mine\n" {
		t.Errorf("the file has %q", got)
	}
	if m.Replace("longer than the whole file is") {
		t.Error("replaced by what does not fit")
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if m.Replace("gone\n") {
		t.Error("replaced in a file that was cut off")
	}
	if (*Mapping)(nil).Replace("x") {
		t.Error("replaced in no file")
	}
}

func TestMapRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, make := range map[string]func(path string) error{
		"missing": func(string) error { return nil },
		"folder":  func(path string) error { return os.Mkdir(path, 0o755) },
		"empty":   func(path string) error { return os.WriteFile(path, nil, 0o644) },
		"link":    func(path string) error { return os.Symlink("/etc/passwd", path) },
	} {
		path := filepath.Join(dir, name)
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if _, err := Map(path); err == nil {
			t.Errorf("%s: mapped", name)
		}
	}
}
