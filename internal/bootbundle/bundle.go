// Package bootbundle makes what every VM boots: a guest kernel, and an initramfs with the
// drivers that the kernel lacks and kiln-sandboxd as /init.
//
// The kernel comes from the distribution's package for cloud machines, which is downloaded
// and unpacked but never installed, or is given. A cache keeps what is slow: the unpacked
// package, and the kernel without its compression. Everything in the cache is named by
// content and written once, so that any number of callers may share it.
package bootbundle

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kilnvm/kiln"
)

// Options say what a bundle is made of.
type Options struct {
	// CacheDir keeps kernels and initramfs files. It is made if it is missing.
	CacheDir string
	// Kernel is an ELF vmlinux or a bzImage. Empty means the distribution's kernel.
	Kernel string
	// ModulesDir is a tree of kernel modules for Kernel, like /lib/modules/VERSION. Empty
	// means that Kernel has all drivers built in.
	ModulesDir string
	// Sandboxd is the kiln-sandboxd program: static, for linux/amd64.
	Sandboxd string
}

// Build returns the bundle for opts, from the cache where possible. Equal inputs give equal
// bytes. Concurrent calls may share a CacheDir, also from several processes.
//
// The error is a [kiln.Error] with code unavailable when no kernel can be had, and invalid when
// a given file cannot be used.
func Build(ctx context.Context, opts Options) (kiln.BootBundle, error) {
	bundle, err := build(ctx, opts)
	if err != nil {
		return kiln.BootBundle{}, fmt.Errorf("boot bundle: %w", err)
	}
	return bundle, nil
}

func build(ctx context.Context, opts Options) (kiln.BootBundle, error) {
	cache := cache{opts.CacheDir}
	if err := os.MkdirAll(cache.dir, 0o755); err != nil {
		return kiln.BootBundle{}, err
	}
	daemon, err := readDaemon(opts.Sandboxd)
	if err != nil {
		return kiln.BootBundle{}, err
	}
	if opts.Kernel == "" {
		if opts.Kernel, opts.ModulesDir, err = distributionKernel(ctx, cache); err != nil {
			return kiln.BootBundle{}, err
		}
	}
	kernel, err := cache.kernel(opts.Kernel)
	if err != nil {
		return kiln.BootBundle{}, err
	}
	var modules []module
	if opts.ModulesDir != "" {
		if modules, err = selectModules(opts.ModulesDir, wantedModules); err != nil {
			return kiln.BootBundle{}, err
		}
	}
	archive, err := initramfs(daemon, modules)
	if err != nil {
		return kiln.BootBundle{}, err
	}
	digest := kiln.DigestOf(archive)
	initrd := filepath.Join(cache.dir, "initrd-"+digest.Hex())
	if err := cache.write(initrd, archive); err != nil {
		return kiln.BootBundle{}, err
	}
	return kiln.BootBundle{
		KernelPath:    kernel.path,
		InitrdPath:    initrd,
		KernelVersion: kernel.version,
		Digest:        kiln.NewKey("boot-bundle", 1).Add("kernel", string(kernel.digest)).Add("initrd", string(digest)).Key(),
	}, nil
}
