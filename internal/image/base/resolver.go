package base

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnvm/kiln"
)

// Bootstrapper makes base images without a registry.
type Bootstrapper interface {
	// Supports reports whether the distribution behind name can be bootstrapped.
	Supports(name Name) bool
	// Names lists what Supports accepts, for people.
	Names() string
	// Bootstrap makes the image and adds it to the store. fresh is false when an image
	// that another process has just made will do.
	Bootstrap(ctx context.Context, name Name, fresh bool, progress kiln.Progress) (Image, error)
}

// Resolver turns names into images, trying in this order: the user's layouts, the
// store, the registry (mirrors first), bootstrap.
type Resolver struct {
	Store     *Store
	Layouts   []string // folders of the user's OCI layouts
	Registry  *Registry
	Bootstrap Bootstrapper
}

// Resolve makes the image available. With pull the store's copy is used only when
// neither a registry nor a bootstrap gives a newer one; the user's layouts always win.
func (r *Resolver) Resolve(ctx context.Context, ref string, pull bool, progress kiln.Progress) (Image, error) {
	name, err := ParseName(ref)
	if err != nil {
		return Image{}, &NotFoundError{Name: ref, Tried: []error{err}, Missing: true}
	}
	for _, dir := range r.Layouts {
		if img, ok, err := layoutDir(dir).find(name); ok || err != nil {
			return img, asNotFound(name, err)
		}
	}
	stored, ok, err := r.Store.Find(name)
	if err != nil {
		progress.Log(kiln.StageImage, fmt.Sprintf("%v; getting it again", err))
	}
	if ok && (!pull || name.Digest() != "") {
		return stored, nil
	}
	img, failure := r.obtain(ctx, name, pull, progress)
	if failure == nil {
		return img, nil
	}
	if ctx.Err() != nil {
		return Image{}, &StoppedError{Name: name.String(), Registry: name.Domain(), Err: context.Cause(ctx)}
	}
	if ok && !failure.Missing {
		progress.Log(kiln.StageImage, fmt.Sprintf("%v; using the copy of %s that is here", failure, name))
		return stored, nil
	}
	return Image{}, failure
}

// obtain asks the registry, then bootstraps.
func (r *Resolver) obtain(ctx context.Context, name Name, fresh bool, progress kiln.Progress) (Image, *NotFoundError) {
	progress.Log(kiln.StageImage, fmt.Sprintf("%s: asking %s", name, name.Domain()))
	img, err := r.Registry.Fetch(ctx, r.Store, name, progress)
	if err == nil {
		return img, nil
	}
	failure := &NotFoundError{Name: name.String(), Missing: answered(err), Tried: []error{
		fmt.Errorf("not among the local images in %s", r.Store.Dir()), err,
	}}
	if ctx.Err() != nil {
		return Image{}, failure
	}
	if !r.Bootstrap.Supports(name) {
		if failure.Missing {
			return Image{}, failure
		}
		failure.Tried = append(failure.Tried, fmt.Errorf("cannot be made from a package archive (only %s can)", r.Bootstrap.Names()))
		return Image{}, failure
	}
	progress.Log(kiln.StageImage, fmt.Sprintf("%s: %v", name, err))
	img, err = r.Bootstrap.Bootstrap(ctx, name, fresh, progress)
	if err != nil {
		failure.Missing = false
		failure.Tried = append(failure.Tried, fmt.Errorf("bootstrap: %w", err))
		return Image{}, failure
	}
	return img, nil
}

// answered reports whether the registry itself (asked last) said that the image is not
// there: then the name is wrong.
func answered(err error) bool {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return false
	}
	errs := joined.Unwrap()
	var last *RegistryError
	return len(errs) > 0 && errors.As(errs[len(errs)-1], &last) && last.Missing
}

// StoppedError says which image was being looked for when the context ended.
type StoppedError struct {
	Name, Registry string
	Err            error
}

func (e *StoppedError) Error() string { return "base image " + e.Name + ": " + e.Err.Error() }
func (e *StoppedError) Unwrap() error { return e.Err }

// NotFoundError says that no source has a base image, and what was tried.
type NotFoundError struct {
	Name  string
	Tried []error
	// Missing says that the name is at fault: whoever had to know it was reached.
	// Otherwise trying again later may help.
	Missing bool
}

func asNotFound(name Name, err error) error {
	if err == nil {
		return nil
	}
	return &NotFoundError{Name: name.String(), Tried: []error{err}, Missing: true}
}

func (e *NotFoundError) Error() string {
	tried := make([]string, len(e.Tried))
	for i, err := range e.Tried {
		tried[i] = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return fmt.Sprintf("base image %s: %s", e.Name, strings.Join(tried, "; "))
}

func (e *NotFoundError) Unwrap() []error { return e.Tried }

// Hint says what the user can do.
func (e *NotFoundError) Hint() string {
	if e.Missing {
		return "check the name in the FROM line, or log in to its registry with docker login"
	}
	return "connect this machine to the registry, configure a mirror of it, or put the image into a local OCI layout"
}

// Locate finds the content of an image that Resolve returned earlier, by digest.
func (r *Resolver) Locate(img kiln.BaseImage) (Image, error) {
	name, err := ParseName(img.Name)
	if err != nil {
		return Image{}, err
	}
	desc := ocispec.Descriptor{Digest: digest.Digest(img.Digest)}
	for _, dir := range append(slices.Clone(r.Layouts), r.Store.Dir()) {
		found, loadErr := layoutDir(dir).load(name, desc)
		if loadErr == nil {
			found.Origin = img.Origin
			return found, nil
		}
		err = loadErr
	}
	return Image{}, err
}
