package pipeline

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/span"
)

// built is what image and rootfs leave behind together, under the key of the rootfs.
type built struct {
	Rootfs kiln.Blob        `json:"rootfs"`
	Config kiln.ImageConfig `json:"config"`
}

// keys are those of the two stages that make a root filesystem.
type keys struct{ image, rootfs kiln.Digest }

func (s *Service) keysOf(src kiln.Source, bases []kiln.BaseImage) keys {
	return s.rootfsKey(s.opts.Images.Key(src, bases))
}

func (s *Service) rootfsKey(image kiln.Digest) keys {
	rootfs := kiln.NewKey(kiln.StageRootfs, 1).
		Add("image", string(image)).
		Add("format", strconv.Itoa(s.opts.Rootfs.FormatVersion())).
		Key()
	return keys{image, rootfs}
}

// imageAndRootfs makes the root filesystem, or finds it.
func (j *job) imageAndRootfs(ctx context.Context) error {
	var k keys
	var found *built
	var img *kiln.Image
	err := j.step(ctx, kiln.StageImage, j.opts.Timeouts.Image, func(ctx context.Context, res *kiln.StageResult) (err error) {
		if k, res.Detail, err = j.resolve(ctx); err != nil {
			return err
		}
		res.Key = k.image
		if found, err = j.findBuilt(ctx, k.rootfs); err != nil || found != nil {
			res.Cached = found != nil
			return err
		}
		img, err = j.buildImage(ctx)
		return err
	})
	if img != nil {
		defer func() {
			if cerr := img.Close(); cerr != nil {
				j.log.Error("cannot release an image", "build", j.v.BuildID, "error", cerr)
			}
		}()
	}
	if err != nil {
		return err
	}
	return j.step(ctx, kiln.StageRootfs, j.opts.Timeouts.Rootfs, func(ctx context.Context, res *kiln.StageResult) (err error) {
		res.Key, res.Cached = k.rootfs, found != nil
		if found == nil {
			if found, err = j.writeRootfs(ctx, k.rootfs, img); err != nil {
				return err
			}
		}
		j.v.Rootfs, j.v.Config = found.Rootfs, found.Config
		res.Detail = fmt.Sprintf("%d MiB", (found.Rootfs.Size+1<<20-1)>>20)
		return nil
	})
}

// resolve says what the image depends on, and in words what it is made from.
func (j *job) resolve(ctx context.Context) (k keys, detail string, err error) {
	if c := j.v.Options.Origin.Capture; c != nil {
		return j.captureKeys(c, j.v.SourceDigest), "from sandbox " + c.Sandbox, nil
	}
	err = span.Do(ctx, "base images", func(ctx context.Context) error {
		j.v.BaseImages, err = j.opts.Images.Resolve(ctx, j.src, j.progress)
		return err
	})
	if err != nil {
		return keys{}, "", err
	}
	return j.keysOf(j.src, j.v.BaseImages), "from " + names(j.v.BaseImages), nil
}

// findBuilt returns the root filesystem for a key if its file is there and undamaged, and
// nil if it has to be made.
func (j *job) findBuilt(ctx context.Context, key kiln.Digest) (*built, error) {
	if j.v.Options.NoCache {
		return nil, nil
	}
	var b built
	ok, err := j.opts.Store.CachedStage(ctx, kiln.StageRootfs, key, &b)
	if err != nil || !ok {
		return nil, err
	}
	if err := j.opts.Blobs.Check(ctx, b.Rootfs); err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		j.progress.Log(kiln.StageImage, "the stored root filesystem is gone or damaged and is made again")
		return nil, nil
	}
	return &b, nil
}

func (j *job) buildImage(ctx context.Context) (*kiln.Image, error) {
	if c := j.v.Options.Origin.Capture; c != nil {
		return j.openCapture(c)
	}
	src, err := j.openWhole(ctx, filepath.Join(j.dir, "context"), j.v)
	if err != nil {
		return nil, err
	}
	if src.Digest != j.v.SourceDigest {
		return nil, errors.New("build context: its digest is not the one that was computed when it arrived")
	}
	src.OrgID = j.src.OrgID
	var img *kiln.Image
	err = span.Do(ctx, "instructions", func(ctx context.Context) error {
		img, err = j.opts.Images.Build(ctx, src, j.v.BaseImages, j.progress)
		return err
	})
	return img, err
}

func (j *job) writeRootfs(ctx context.Context, key kiln.Digest, img *kiln.Image) (*built, error) {
	path := filepath.Join(j.dir, "rootfs.ext4")
	var blob kiln.Blob
	var notes []string
	err := span.Do(ctx, "write", func(ctx context.Context) (err error) {
		blob, notes, err = j.opts.Rootfs.Write(ctx, img.Root, path)
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, n := range notes {
		j.progress.Log(kiln.StageRootfs, n)
	}
	blob.Role = kiln.RoleRootfs
	if err := j.opts.Blobs.Adopt(ctx, path, blob); err != nil {
		return nil, fmt.Errorf("rootfs: %w", err)
	}
	b := &built{Rootfs: blob, Config: img.Config}
	return b, j.opts.Store.CacheStage(ctx, kiln.StageRootfs, key, b)
}

func names(bases []kiln.BaseImage) string {
	if len(bases) == 0 {
		return "scratch"
	}
	list := make([]string, len(bases))
	for i, b := range bases {
		list[i] = b.Name
	}
	return strings.Join(list, ", ")
}
