package bootstrap

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/image/base"
)

// Maker makes base images and puts them into a store.
type Maker struct {
	store    *base.Store
	keyrings map[string]string
}

// New returns a maker. keyrings maps "debian" or "ubuntu" to a file with the keys of its
// archive, where that is not in the usual place.
func New(store *base.Store, keyrings map[string]string) *Maker {
	return &Maker{store: store, keyrings: keyrings}
}

// Supports reports whether name is a release that can be bootstrapped.
func (m *Maker) Supports(name base.Name) bool {
	_, ok := find(name)
	return ok
}

// Names lists the supported names, for people.
func (m *Maker) Names() string { return names() }

// Bootstrap makes the image that name means and adds it to the store. One process does
// so at a time; others wait. Unless fresh is set, an image that is there is returned,
// under whichever of its names it was made.
func (m *Maker) Bootstrap(ctx context.Context, name base.Name, fresh bool, progress kiln.Progress) (base.Image, error) {
	t, ok := find(name)
	if !ok {
		return base.Image{}, kiln.Errorf(kiln.CodeInvalid, "%s cannot be bootstrapped", name).WithHint("supported: %s", names())
	}
	canonical, err := base.ParseName(t.canonical())
	if err != nil {
		return base.Image{}, err
	}
	unlock, err := m.store.Lock(ctx, "-bootstrap-"+t.family.id+"-"+t.codename)
	if err != nil {
		return base.Image{}, err
	}
	defer unlock()
	img, ok, err := m.store.Find(canonical)
	if !ok || err != nil || fresh || img.Origin != base.OriginBootstrap {
		img, err = m.make(ctx, t, canonical, progress)
	}
	if err != nil || canonical.Full() == name.Full() {
		return img, err
	}
	return m.store.Add(ctx, base.Entry{Name: name, Manifest: img.Manifest, Origin: base.OriginBootstrap})
}

func (m *Maker) make(ctx context.Context, t target, canonical base.Name, progress kiln.Progress) (base.Image, error) {
	if err := checkTools(); err != nil {
		return base.Image{}, err
	}
	workDir, err := m.workDir(t)
	if err != nil {
		return base.Image{}, err
	}
	defer os.RemoveAll(workDir)
	a := newArchive(ctx, t)
	progress.Log(kiln.StageImage, fmt.Sprintf("bootstrap: making %s from %s", canonical, a.main))
	epoch, err := a.published(ctx, workDir)
	if err != nil {
		return base.Image{}, err
	}
	if a.keyring, err = m.keyring(ctx, t, workDir, progress); err != nil {
		return base.Image{}, err
	}
	layer, err := m.store.NewBlob()
	if err != nil {
		return base.Image{}, err
	}
	defer layer.Abort()
	if err := run(ctx, a, workDir, epoch, layer, progress); err != nil {
		return base.Image{}, err
	}
	// Uncompressed: it never travels, and unpacking it takes half the time.
	desc, err := layer.Commit(ocispec.MediaTypeImageLayer)
	if err != nil {
		return base.Image{}, err
	}
	return m.add(ctx, canonical, desc, epoch)
}

// add writes configuration and manifest for the layer and names the image.
func (m *Maker) add(ctx context.Context, name base.Name, layer ocispec.Descriptor, epoch time.Time) (base.Image, error) {
	epoch = epoch.UTC()
	config, err := m.putJSON(ocispec.MediaTypeImageConfig, ocispec.Image{
		Created:  &epoch,
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		Config: ocispec.ImageConfig{
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cmd: []string{"bash"},
		},
		RootFS:  ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}},
		History: []ocispec.History{{Created: &epoch, CreatedBy: "mmdebstrap " + name.String()}},
	})
	if err != nil {
		return base.Image{}, err
	}
	manifest, err := m.putJSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config,
		Layers:    []ocispec.Descriptor{layer},
	})
	if err != nil {
		return base.Image{}, err
	}
	return m.store.Add(ctx, base.Entry{Name: name, Manifest: manifest, Origin: base.OriginBootstrap})
}

func (m *Maker) putJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return m.store.Put(mediaType, b)
}

// workDir makes a folder below the system's temporary folder, where the unprivileged
// user that apt downloads as can reach it. Its name is fixed, so that what a killed run
// left is found and removed; the caller holds the target's lock.
func (m *Maker) workDir(t target) (string, error) {
	sum := sha256.Sum256([]byte(m.store.Dir()))
	dir := filepath.Join(os.TempDir(), "kiln-bootstrap-"+hex.EncodeToString(sum[:4])+"-"+t.family.id+"-"+t.codename)
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("bootstrap folder: %w", err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", fmt.Errorf("bootstrap folder: %w", err)
	}
	return dir, nil
}

// keyring finds the keys of t's archive: configured, installed, or from Debian.
func (m *Maker) keyring(ctx context.Context, t target, workDir string, progress kiln.Progress) (string, error) {
	if path := m.keyrings[t.family.id]; path != "" {
		return path, nil
	}
	_, err := os.Stat(t.family.keyring)
	if err == nil {
		return t.family.keyring, nil
	}
	missing := kiln.Errorf(kiln.CodeUnavailable, "the keys of the %s archive are missing (%s): %w", t.family.id, t.family.keyring, err).
		WithHint("install the package %s, or configure a keyring file for %s", t.family.keyPackage, t.family.id)
	if t.family.id == debian().id {
		return "", missing
	}
	key, err := keyFromDebian(ctx, t.family.keyPackage, t.family.keyring, workDir, progress)
	if err != nil {
		return "", errors.Join(missing, fmt.Errorf("package %s from Debian: %w", t.family.keyPackage, err))
	}
	path := filepath.Join(workDir, filepath.Base(t.family.keyring))
	return path, os.WriteFile(path, key, 0o644)
}

func checkTools() error {
	if os.Geteuid() != 0 {
		return kiln.Errorf(kiln.CodeUnavailable, "bootstrapping a base image needs root").WithHint("run the server as root")
	}
	for _, tool := range []struct{ program, pkg string }{
		{"mmdebstrap", "mmdebstrap"}, {"unshare", "util-linux"}, {"/usr/lib/apt/apt-helper", "apt"},
	} {
		if _, err := exec.LookPath(tool.program); err != nil {
			return kiln.Errorf(kiln.CodeUnavailable, "bootstrapping a base image needs %s: %w", tool.program, err).
				WithHint("apt-get install %s", tool.pkg)
		}
	}
	return nil
}
