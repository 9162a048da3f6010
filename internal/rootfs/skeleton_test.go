package rootfs

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/rootfs/rootfstest"
)

func TestAgentSkeletonIsCopied(t *testing.T) {
	home := rootfstest.Pattern{Seed: 4, Size: 9000}.Entry("home/agent/.profile")
	home.UID, home.GID, home.Mode = 1000, 1000, 0o600
	stale := rootfstest.Pattern{Seed: 5, Size: 10}.Entry("etc/skel/agent-skel/.profile")
	src := rootfstest.Tree{
		stale, home,
		{Path: "home/agent", Type: kiln.TypeDirectory, Mode: 0o700, UID: 1000, GID: 1000},
		{Path: "home/agent/again", Type: kiln.TypeHardlink, Linkname: "home/agent/.profile"},
		{Path: "home/agentx", Type: kiln.TypeDirectory, Mode: 0o755},
	}
	path := filepath.Join(t.TempDir(), "image")
	res, err := Write(context.Background(), src, path)
	if err != nil {
		t.Fatal(err)
	}
	rootfstest.Fsck(t, path)
	im, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	copied, err := im.Lookup("etc/skel/agent-skel/.profile")
	if err != nil || copied.Size != 9000 || copied.UID != 1000 || copied.Mode != 0o600 {
		t.Errorf("copy: %+v, %v", copied, err)
	}
	a, _ := im.Lookup("home/agent/again")
	b, _ := im.Lookup("etc/skel/agent-skel/again")
	if b.Ref != copied.Ref || a.Ref == b.Ref {
		t.Errorf("hardlinks: home %s, skeleton %s and %s", a.Ref, copied.Ref, b.Ref)
	}
	if e, err := im.Lookup("etc/skel/agent-skel"); err != nil || e.Mode != 0o700 {
		t.Errorf("skeleton directory: %+v, %v", e, err)
	}
	if entries, err := im.ReadDir("etc/skel"); err != nil || len(entries) != 1 {
		t.Errorf("etc/skel: %v, %v", entries, err)
	}
	if res.Blob.Size != im.Size() || len(res.Chunks) != int((im.Size()+int64(res.ChunkSize)-1)/int64(res.ChunkSize)) {
		t.Errorf("result %+v", res.Blob)
	}
}
