package testkit

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Cached returns the file of that name in the cache, and makes it first if it is missing.
// make writes to the path it is given; its result appears as a whole or not at all. The lock
// keeps parallel test processes from making one thing twice.
func Cached(t testing.TB, name string, make func(path string)) string {
	t.Helper()
	path := filepath.Join(CacheDir(), name)
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatalf("lock %s: %v", path, err)
	}
	if _, err := os.Stat(path); err == nil {
		return path
	}
	tmp := path + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		t.Fatal(err)
	}
	make(tmp)
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// ContentName returns a cache name that stands for the given contents.
func ContentName(prefix string, contents ...[]byte) string {
	h := sha256.New()
	for _, c := range contents {
		sum := sha256.Sum256(c)
		h.Write(sum[:])
	}
	return prefix + "-" + hex.EncodeToString(h.Sum(nil))[:16]
}
