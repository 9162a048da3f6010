package pipeline

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/testkit"
)

// failures is a log handler that passes on the messages of errors.
type failures struct {
	slog.Handler
	told chan string
}

func logFailures(o *Options) <-chan string {
	told := make(chan string, 100)
	o.Log = slog.New(failures{slog.NewTextHandler(io.Discard, nil), told})
	return told
}

func (f failures) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		f.told <- r.Message
	}
	return nil
}

func (f failures) WithAttrs([]slog.Attr) slog.Handler { return f }

// TestClaimIsRepeated has a database that refuses to start a build until it has been asked
// several times.
func TestClaimIsRepeated(t *testing.T) {
	var told <-chan string
	r := newRig(t, t.TempDir(), func(o *Options, _ *stages) { told = logFailures(o) })
	exec := func(statement string) {
		t.Helper()
		if _, err := r.store.DB().ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	exec(`CREATE TRIGGER refuse BEFORE UPDATE OF attempts ON builds BEGIN SELECT RAISE(ABORT, 'no'); END`)
	res := r.create(t, "a", nil)
	for range 3 {
		if said := <-told; said != "cannot start a build" {
			t.Errorf("logged %q", said)
		}
	}
	exec(`DROP TRIGGER refuse`)
	r.ready(t, res)
	if b, err := r.store.Build(t.Context(), res.Version.BuildID); err != nil || b.Attempts != 1 {
		t.Errorf("%+v, %v", b, err)
	}
	r.tidy(t)
}

// TestClaimWithoutAnswerIsRepeated loses the connection to the database between the commit
// of a claim and its answer: the build is building, and nobody knows.
func TestClaimWithoutAnswerIsRepeated(t *testing.T) {
	dir, link := databaseBehindLink(t)
	var told <-chan string
	r := newRig(t, dir, func(o *Options, _ *stages) { told = logFailures(o) })
	link.cutCommit.Store(&cut{after: "attempts = attempts + 1"})
	res := r.create(t, "a", nil)
	if said := <-told; said != "cannot start a build" {
		t.Errorf("logged %q", said)
	}
	r.ready(t, res)
	if b, err := r.store.Build(t.Context(), res.Version.BuildID); err != nil || b.Attempts != 1 {
		t.Errorf("%+v, %v", b, err)
	}
	r.tidy(t)
}

// TestPromotionWithoutAnswer loses the connection between the commit of a promotion and its
// answer: the version is ready, and its log must say so.
func TestPromotionWithoutAnswer(t *testing.T) {
	dir, link := databaseBehindLink(t)
	var changed atomic.Int32
	r := newRig(t, dir, func(o *Options, _ *stages) { o.CurrentChanged = func() { changed.Add(1) } })
	link.cutCommit.Store(&cut{after: "SET promoted"})
	res := r.create(t, "a", nil)
	r.ready(t, res)
	if link.cutCommit.Load() != nil {
		t.Fatal("no answer was lost")
	}
	var last string
	for line, err := range r.Logs(t.Context(), org, res.Version.BuildID, 0, true) {
		if err != nil {
			t.Fatal(err)
		}
		last = line.Line
	}
	if last != "version 1 is ready" || changed.Load() != 1 {
		t.Errorf("the log ends with %q, and the pool was told %d times", last, changed.Load())
	}
	r.tidy(t)
}

// TestHazard22CancelBeforeTheNextAttempt cancels a build when its attempt has failed and has
// not been put back: no attempt is there to be told.
func TestHazard22CancelBeforeTheNextAttempt(t *testing.T) {
	var r *rig
	ids := make(chan string, 1)
	var first sync.Once
	r = newRig(t, dataDir(t), func(_ *Options, s *stages) {
		s.hook = func(ctx context.Context, _ kiln.Stage) (err error) {
			first.Do(func() {
				_, err = r.store.CancelBuild(ctx, <-ids, nil)
				err = errors.Join(err, errors.New("hiccup"))
			})
			return err
		}
	})
	res := r.create(t, "a", nil)
	ids <- res.Version.BuildID
	v := r.wait(t, res)
	if v.Status != kiln.VersionFailed || !strings.Contains(v.BuildError.Message, "cancelled") {
		t.Errorf("%s: %+v", v.Status, v.BuildError)
	}
	if ran := r.take(); len(ran) != 1 {
		t.Errorf("ran %q", ran)
	}
	r.tidy(t)
}

// link passes on what is said between a PostgreSQL server and its clients.
type link struct {
	server string // its socket
	// cutCommit, if set, says which transaction's answer is lost. It is reset when that has
	// happened.
	cutCommit atomic.Pointer[cut]
}

// cut is a commit that comes after a statement on the same connection.
type cut struct{ after string }

// databaseBehindLink makes a data directory for a service whose database is PostgreSQL, and
// what connects the two.
func databaseBehindLink(t *testing.T) (dir string, l *link) {
	t.Helper()
	server := testkit.StartPostgres(t)
	const socket = ".s.PGSQL.5432"
	l = &link{server: filepath.Join(server.Dir, socket)}
	near := testkit.ShortTempDir(t)
	listener, err := net.Listen("unix", filepath.Join(near, socket))
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { l.serve(client) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		conns.Wait()
	})
	dir = t.TempDir()
	u, err := url.Parse(server.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("host", near)
	u.RawQuery = q.Encode()
	if err := os.WriteFile(filepath.Join(dir, databaseURL), []byte(u.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, l
}

// serve passes on one connection until one of its ends closes it.
func (l *link) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("unix", l.server)
	if err != nil {
		return
	}
	defer server.Close()
	var lost atomic.Bool
	go func() {
		defer server.Close()
		buf := make([]byte, 64<<10)
		said := false
		for {
			n, err := client.Read(buf)
			if c := l.cutCommit.Load(); c != nil {
				said = said || bytes.Contains(buf[:n], []byte(c.after))
				if said && bytes.Contains(buf[:n], []byte("commit")) && l.cutCommit.CompareAndSwap(c, nil) {
					lost.Store(true)
				}
			}
			if _, werr := server.Write(buf[:n]); err != nil || werr != nil {
				return
			}
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := server.Read(buf)
		if err != nil || lost.Load() {
			return // the answer to the commit, if it is that, stays here
		}
		if _, err := client.Write(buf[:n]); err != nil {
			return
		}
	}
}
