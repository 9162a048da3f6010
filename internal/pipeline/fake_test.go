package pipeline

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/artifact"
	"github.com/kilnvm/kiln/internal/store"
)

// host is everything outside the pipeline that a stage key depends on.
type host struct {
	base     string // content of every base image
	upstream string // content that pulling it gives, "" if that is the same
	format   int
	machine  string
}

// stages records what really ran. It stands in for all three stages: the pipeline's own
// behaviour is what these tests are about, the real stages have tests of their own.
type stages struct {
	blobs *artifact.Blobs
	dir   string
	hook  func(ctx context.Context, stage kiln.Stage) error // runs inside each stage

	mu     sync.Mutex
	host   host
	ran    []kiln.Stage
	closed int
}

func (s *stages) enter(ctx context.Context, stage kiln.Stage) (host, error) {
	s.mu.Lock()
	s.ran = append(s.ran, stage)
	h := s.host
	s.mu.Unlock()
	if s.hook == nil {
		return h, nil
	}
	return h, s.hook(ctx, stage)
}

func (s *stages) take() []kiln.Stage {
	s.mu.Lock()
	defer s.mu.Unlock()
	ran := s.ran
	s.ran = nil
	return ran
}

func (s *stages) set(change func(*host)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.host)
}

func (s *stages) get() host {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.host
}

func (s *stages) Resolve(_ context.Context, src kiln.Source, _ kiln.Progress) ([]kiln.BaseImage, error) {
	if src.Options.Pull {
		s.set(func(h *host) { h.base = cmp.Or(h.upstream, h.base) })
	}
	return []kiln.BaseImage{{Name: "debian", Digest: kiln.DigestOf([]byte(s.get().base)), Origin: "layout"}}, nil
}

type imageStage struct{ *stages }

func (imageStage) Key(src kiln.Source, bases []kiln.BaseImage) kiln.Digest {
	k := kiln.NewKey(kiln.StageImage, 1).Add("source", string(src.Digest)).Add("target", src.Options.Target).AddMap("args", src.Options.Args)
	if len(src.Options.Secrets) > 0 {
		k.Add("organisation", src.OrgID)
	}
	for _, b := range bases {
		k.Add("base", string(b.Digest))
	}
	return k.Key()
}

func (s imageStage) Build(ctx context.Context, src kiln.Source, bases []kiln.BaseImage, p kiln.Progress) (*kiln.Image, error) {
	if _, err := os.Stat(filepath.Join(src.Dir, src.Options.Dockerfile)); err != nil {
		return nil, err
	}
	p.Log(kiln.StageImage, "RUN something")
	if _, err := s.enter(ctx, kiln.StageImage); err != nil {
		return nil, err
	}
	config := kiln.ImageConfig{User: "u"}
	if cmd, ok := src.Options.Args[cmdArg]; ok {
		config.Cmd = []string{cmd}
	}
	src.Options.Args = maps.Clone(src.Options.Args)
	delete(src.Options.Args, cmdArg)
	return &kiln.Image{Config: config, Root: &root{s.stages, string(s.Key(src, bases))}}, nil
}

// cmdArg is a build argument that only CMD uses, which adds no layer.
const cmdArg = "CMD"

// root is an image's root filesystem; its content is all that matters.
type root struct {
	stages  *stages
	content string
}

func (r *root) Entries() iter.Seq2[kiln.Entry, error] {
	return func(yield func(kiln.Entry, error) bool) { yield(kiln.Entry{Path: r.content}, nil) }
}

func (r *root) Close() error {
	r.stages.mu.Lock()
	defer r.stages.mu.Unlock()
	r.stages.closed++
	return nil
}

type rootfsStage struct{ *stages }

func (s rootfsStage) FormatVersion() int { return s.get().format }

func (s rootfsStage) Write(ctx context.Context, src kiln.EntrySource, dst string) (kiln.Blob, []string, error) {
	h, err := s.enter(ctx, kiln.StageRootfs)
	if err != nil {
		return kiln.Blob{}, nil, err
	}
	var path string
	for e := range src.Entries() {
		path = e.Path
	}
	content := []byte(fmt.Sprintf("%s format %d", path, h.format))
	if err := os.WriteFile(dst, content, 0o600); err != nil {
		return kiln.Blob{}, nil, err
	}
	return kiln.Blob{Digest: kiln.DigestOf(content), Size: int64(len(content))}, []string{"a note"}, nil
}

type snapshotStage struct{ *stages }

func (s snapshotStage) Key(spec kiln.VMSpec) kiln.Digest {
	return kiln.SnapshotKey{VMSpec: spec, VMM: s.get().machine}.Digest()
}

func (s snapshotStage) Bake(ctx context.Context, spec kiln.VMSpec, _ kiln.Progress) (kiln.Snapshot, error) {
	snap := kiln.Snapshot{Key: s.Key(spec), SizeName: spec.Size.Name, Rootfs: spec.Rootfs, CreatedAt: time.Now().UTC()}
	if _, err := s.enter(ctx, kiln.StageSnapshot); err != nil {
		return kiln.Snapshot{}, err
	}
	dir, err := s.blobs.TempDir("bake")
	if err != nil {
		return kiln.Snapshot{}, err
	}
	defer os.RemoveAll(dir)
	for role, blob := range map[string]*kiln.Blob{kiln.RoleMemory: &snap.Memory, kiln.RoleVMState: &snap.VMState, kiln.RoleScratch: &snap.Scratch} {
		path := filepath.Join(dir, role)
		if err := os.WriteFile(path, []byte(role+string(snap.Key)), 0o600); err != nil {
			return kiln.Snapshot{}, err
		}
		if *blob, err = s.blobs.Ingest(ctx, path, role); err != nil {
			return kiln.Snapshot{}, err
		}
	}
	return snap, nil
}

// rig is a service on a data directory.
type rig struct {
	*Service
	*stages
	store *store.Store
	dir   string
}

func newRig(t *testing.T, dir string, change func(*Options, *stages)) *rig {
	t.Helper()
	r, stop, err := startRig(t.Context(), dir, change)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 20*time.Second)
		defer cancel()
		if err := stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return r
}

func startRig(ctx context.Context, dir string, change func(*Options, *stages)) (*rig, func(context.Context) error, error) {
	db, err := openStore(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	blobs, err := artifact.Open(filepath.Join(dir, "blobs"))
	if err != nil {
		return nil, nil, err
	}
	st := &stages{blobs: blobs, dir: dir, host: host{base: "1", format: 1, machine: "m1"}}
	opts := Options{
		Store: db, Blobs: blobs, Images: imageStage{st}, Rootfs: rootfsStage{st}, Snapshots: snapshotStage{st},
		Dir: filepath.Join(dir, "builds"), Parallel: 2, RetryAfter: time.Millisecond, Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&opts, st)
	}
	s, err := Start(ctx, opts)
	if err != nil {
		_ = db.Close()
		return nil, nil, err
	}
	stop := func(ctx context.Context) error {
		if err := s.Close(ctx); err != nil {
			return err
		}
		return db.Close()
	}
	return &rig{Service: s, stages: st, store: db, dir: dir}, stop, nil
}

const org = "org_a"

type files map[string]string

// archive makes a context from files, with a Dockerfile unless there is one.
func archive(t *testing.T, f files) *bytes.Reader {
	t.Helper()
	content, err := f.tar()
	if err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(content)
}

func (f files) tar() ([]byte, error) {
	all := files{"Dockerfile": "FROM debian"}
	maps.Copy(all, f)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(all[name]))}); err != nil {
			return nil, err
		}
		if _, err := w.Write([]byte(all[name])); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return buf.Bytes(), err
}

func (r *rig) create(t *testing.T, name string, f files) *Result {
	t.Helper()
	res, err := r.Create(t.Context(), org, NewTemplate{Name: name, Context: archive(t, f), Replace: true})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func (r *rig) wait(t *testing.T, res *Result) *kiln.Version {
	t.Helper()
	v, err := r.Wait(t.Context(), res.Version.BuildID)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (r *rig) ready(t *testing.T, res *Result) *kiln.Version {
	t.Helper()
	v := r.wait(t, res)
	if v.Status != kiln.VersionReady {
		t.Fatalf("build is %s: %v", v.Status, v.BuildError)
	}
	return v
}

// tidy checks that nothing is left in memory or in temporary folders.
func (r *rig) tidy(t *testing.T) {
	t.Helper()
	// Wait returns when the end is stored; what remains is a few instructions away.
	deadline := time.Now().Add(5 * time.Second)
	for {
		r.Service.mu.Lock()
		running, secrets := len(r.running), len(r.Service.secrets)
		r.Service.mu.Unlock()
		r.logs.mu.Lock()
		feeds := len(r.logs.feeds)
		r.logs.mu.Unlock()
		left, err := os.ReadDir(filepath.Join(r.dir, "blobs", "tmp"))
		if err != nil {
			t.Fatal(err)
		}
		if running+secrets+feeds+len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("left: %d running, %d secrets, %d feeds, files %v", running, secrets, feeds, left)
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// blobCount returns how many blobs there are.
func (r *rig) blobCount(t *testing.T) int {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(r.dir, "blobs", "sha256", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		os.Exit(child(dir))
	}
	goleak.VerifyTestMain(m)
}
