package bootbundle

import (
	"errors"
	"slices"
	"testing"
)

func TestKernelPackages(t *testing.T) {
	control := map[string]string{
		"linux-image-cloud-amd64":          "Package: linux-image-cloud-amd64\nDepends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\nDescription: x\n",
		"linux-image-6.1.0-56-cloud-amd64": "Package: linux-image-6.1.0-56-cloud-amd64\nDepends: kmod, initramfs-tools (>= 0.120+deb8u2) | linux-initramfs-tool\n",
		// Ubuntu keeps the modules in a package of their own.
		"linux-image-virtual":            "Depends: linux-image-6.8.0-50-generic\n",
		"linux-image-6.8.0-50-generic":   "Depends: kmod, linux-base (>= 4.5), linux-modules-6.8.0-50-generic\n",
		"linux-modules-6.8.0-50-generic": "Recommends: wireless-regdb\n",
		"empty":                          "Package: empty\n",
	}
	show := func(name string) ([]byte, error) {
		if text, ok := control[name]; ok {
			return []byte(text), nil
		}
		return nil, errors.New("no such package")
	}
	for meta, want := range map[string][]string{
		"linux-image-cloud-amd64": {"linux-image-6.1.0-56-cloud-amd64"},
		"linux-image-virtual":     {"linux-image-6.8.0-50-generic", "linux-modules-6.8.0-50-generic"},
		"empty":                   nil,
		"missing":                 nil,
	} {
		got, err := kernelPackages(meta, show)
		if !slices.Equal(got, want) || (err == nil) != (want != nil) {
			t.Errorf("%s: got %q, %v; want %q", meta, got, err, want)
		}
	}
}

func TestSoftdepsBefore(t *testing.T) {
	for value, want := range map[string][]string{
		"pre: crc32c":             {"crc32c"},
		"pre: a b post: c pre: d": {"a", "b", "d"},
		"post: a":                 nil,
		"":                        nil,
	} {
		if got := softdepsBefore(value); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", value, got, want)
		}
	}
}

func TestModuleName(t *testing.T) {
	for file, want := range map[string]string{
		"virtio-rng.ko": "virtio_rng", "ext4.ko.xz": "ext4", "x.ko.zst": "x", "y.ko.gz": "y",
		"modules.dep": "", "z.ko.bak": "", "kernel.kobject": "",
	} {
		if got, ok := moduleName(file); got != want && ok || ok != (want != "") {
			t.Errorf("%s: got %q, %v; want %q", file, got, ok, want)
		}
	}
}
