package bootbundle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/hostcmd"
)

// metaPackages name the current kernel for virtual machines: Debian's, then Ubuntu's.
var metaPackages = []string{"linux-image-cloud-amd64", "linux-image-virtual"}

// Distribution returns the kernel image and the module tree that [Build] takes where no
// kernel is given.
func Distribution(ctx context.Context, cacheDir string) (image, modules string, err error) {
	c := cache{cacheDir}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return "", "", err
	}
	return distributionKernel(ctx, c)
}

// distributionKernel returns the kernel image and the module tree of the distribution's cloud
// kernel.
//
// It is fetched once and then kept: all snapshots depend on it, so that neither an
// update of the package lists nor a lost network may change it behind the user's back.
// Removing the folder makes the next call fetch the current one.
func distributionKernel(ctx context.Context, c cache) (image, modules string, err error) {
	unlock, err := c.lock(ctx)
	if err != nil {
		return "", "", err
	}
	defer unlock()
	dir := filepath.Join(c.dir, "distribution-kernel")
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := fetchKernel(ctx, c, dir); err != nil {
			return "", "", err
		}
	}
	return findKernel(dir)
}

// fetchKernel downloads the packages of the kernel and leaves their files in dir.
func fetchKernel(ctx context.Context, c cache, dir string) error {
	tmp, err := os.MkdirTemp(c.dir, ".tmp-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	packages, err := downloadKernel(ctx, tmp)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		return kiln.Errorf(kiln.CodeUnavailable, "no guest kernel: tried the packages %s: %w", strings.Join(metaPackages, ", "), err).
			WithHint("mend apt's package sources or this host's network, or name a vmlinux as `kernel` under [vm] in the configuration")
	}
	root := filepath.Join(tmp, "root")
	for _, deb := range packages {
		if err := hostcmd.Run(ctx, "dpkg-deb", "--extract", deb, root); err != nil {
			return err
		}
	}
	if _, _, err := findKernel(root); err != nil {
		return err
	}
	if err := syncTree(root); err != nil {
		return err
	}
	if err := os.Rename(root, dir); err != nil {
		return err
	}
	return c.sync()
}

// syncTree makes all that was written to dir's file system durable.
func syncTree(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// downloadKernel downloads the current kernel's packages into dir and returns their paths. Stale
// package lists name versions that mirrors no longer have; they are renewed once.
func downloadKernel(ctx context.Context, dir string) ([]string, error) {
	paths, err := downloadPackages(ctx, dir)
	if err == nil || ctx.Err() != nil {
		return paths, err
	}
	if updateErr := hostcmd.Run(ctx, "apt-get", "-qq", "update"); updateErr != nil {
		return nil, errors.Join(err, updateErr)
	}
	return downloadPackages(ctx, dir)
}

func downloadPackages(ctx context.Context, dir string) ([]string, error) {
	names, err := resolveKernel(ctx)
	if err != nil {
		return nil, err
	}
	download := hostcmd.Command{
		Name: "apt-get",
		Args: append([]string{"-qq", "-o", "APT::Sandbox::User=root", "download"}, names...),
		Dir:  dir,
	}
	if err := download.Run(ctx); err != nil {
		return nil, err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err == nil && len(debs) < len(names) {
		err = fmt.Errorf("%s left %d files for %d packages", download, len(debs), len(names))
	}
	return debs, err
}

// resolveKernel returns the names of the packages that hold the current kernel and its modules.
func resolveKernel(ctx context.Context) ([]string, error) {
	var errs []error
	for _, meta := range metaPackages {
		names, err := kernelPackages(meta, func(name string) ([]byte, error) {
			return hostcmd.Output(ctx, "apt-cache", "show", "--no-all-versions", name)
		})
		if err == nil {
			return names, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// versionedPackage matches the packages with a kernel's files; the meta packages that
// merely depend on them have no number in their names.
var versionedPackage = regexp.MustCompile(`^linux-(image|modules)-[0-9]`)

// kernelPackages follows the dependencies of a meta package. show returns a package's
// control data.
func kernelPackages(meta string, show func(name string) ([]byte, error)) ([]string, error) {
	var found []string
	seen := map[string]bool{meta: true}
	for queue := []string{meta}; len(queue) > 0; queue = queue[1:] {
		control, err := show(queue[0])
		if err != nil {
			return nil, err
		}
		for _, dep := range dependencies(control) {
			if versionedPackage.MatchString(dep) && !seen[dep] {
				seen[dep] = true
				found = append(found, dep)
				queue = append(queue, dep)
			}
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("package %s names no kernel", meta)
	}
	return found, nil
}

// dependencies returns the names in the Depends field of Debian control data; of
// alternatives, the first.
func dependencies(control []byte) []string {
	var names []string
	for line := range strings.Lines(string(control)) {
		list, ok := strings.CutPrefix(line, "Depends:")
		if !ok {
			continue
		}
		for dep := range strings.SplitSeq(list, ",") {
			if words := strings.Fields(dep); len(words) > 0 {
				names = append(names, words[0])
			}
		}
		return names
	}
	return names
}

// findKernel returns the kernel image and the module tree among a kernel package's files.
func findKernel(root string) (image, modules string, err error) {
	one := func(patterns ...string) (string, error) {
		for _, p := range patterns {
			found, err := filepath.Glob(filepath.Join(root, p))
			if err != nil {
				return "", err
			}
			if len(found) == 1 {
				return found[0], nil
			}
		}
		return "", kiln.Errorf(kiln.CodeUnavailable, "the distribution's kernel in %s has no %s", root, patterns[0]).
			WithHint("remove that folder to fetch it again")
	}
	if image, err = one("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz"); err != nil {
		return "", "", err
	}
	modules, err = one("lib/modules/*", "usr/lib/modules/*")
	return image, modules, err
}
