package artifact

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
)

func TestCheckReadsAgainOnlyWhatChanged(t *testing.T) {
	blobs, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	src := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(src, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	blob, err := blobs.Ingest(t.Context(), src, kiln.RoleMemory)
	if err != nil {
		t.Fatal(err)
	}
	path := blobs.Path(blob.Digest)
	if err := blobs.Check(t.Context(), blob); err != nil {
		t.Fatal(err)
	}
	if readStamp(path) == "" {
		t.Fatal("a good check is not remembered")
	}
	// With a stamp that fits, nothing is read: a file that is wrong but unchanged passes.
	forged := blob
	forged.Digest = kiln.DigestOf([]byte("other"))
	if err := os.MkdirAll(filepath.Dir(blobs.Path(forged.Digest)), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(path, blobs.Path(forged.Digest)); err != nil {
		t.Fatal(err)
	}
	if err := blobs.Check(t.Context(), forged); err != nil {
		t.Errorf("content was read although the file is unchanged: %v", err)
	}
	write := func(content string) {
		t.Helper()
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, damaged := range []string{"cOntent", "conten", "contents", ""} {
		write(damaged)
		if err := blobs.Check(t.Context(), blob); err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("content %q: error %v, want damaged", damaged, err)
		}
	}
	write("content")
	if err := blobs.Check(t.Context(), blob); err != nil {
		t.Errorf("mended blob: %v", err)
	}
	if err := blobs.Remove(blob.Digest); err != nil {
		t.Fatal(err)
	}
	if err := blobs.Check(t.Context(), blob); err == nil {
		t.Error("missing blob passes")
	}
}
