package testkit

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Postgres is a PostgreSQL server that a test started for itself.
type Postgres struct {
	Dir string // of its Unix socket
}

// postgresStart bounds how long a server may take to accept connections.
const postgresStart = time.Minute

// StartPostgres starts a server for the test, with its data in a temporary folder and no
// network address, as the unprivileged user "postgres". It does not sync its files, so it
// tells nothing about power cuts. It ends with the test, however that ends.
func StartPostgres(t testing.TB) *Postgres {
	t.Helper()
	RequireRoot(t)
	bin := postgresBin(t)
	cred := credentialOf(t, "postgres")
	dir := ShortTempDir(t)
	data := filepath.Join(dir, "data")
	if err := syscall.Chown(dir, int(cred.Uid), int(cred.Gid)); err != nil {
		t.Fatal(err)
	}
	command := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(bin, name), args...)
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred, Pdeathsig: syscall.SIGQUIT}
		return cmd
	}
	// The locale is one that does not sort by bytes: code must not rely on what a database
	// was made with.
	out, err := command("initdb", "-D", data, "--no-sync", "--no-instructions", "-A", "trust", "-U", "kiln", "-E", "UTF8",
		"--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en").CombinedOutput()
	if err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	var log bytes.Buffer
	server := command("postgres", "-D", data, "-k", dir, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=200", "-c", "shared_buffers=32MB")
	server.Stdout, server.Stderr = &log, &log
	ended := RunOnOneThread(server)
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGQUIT) // it has ended by itself when this fails
		<-ended
	})
	p := &Postgres{Dir: dir}
	for deadline := time.Now().Add(postgresStart); ; time.Sleep(20 * time.Millisecond) {
		err := p.exec(t.Context(), "SELECT 1")
		if err == nil {
			return p
		}
		select {
		case <-ended:
			t.Fatalf("PostgreSQL has ended:\n%s", &log)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("PostgreSQL does not answer: %v", err)
		}
	}
}

// RunOnOneThread starts a command and returns a channel that is closed when it has ended.
// The kernel signals the death of the parent's thread, which must therefore live as long.
func RunOnOneThread(cmd *exec.Cmd) <-chan struct{} {
	started, ended := make(chan struct{}), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := cmd.Start()
		close(started)
		if err == nil {
			_ = cmd.Wait() // killed, in the end
		}
	}()
	<-started
	return ended
}

// postgresBin returns the folder of the server's programs, which Debian keeps off the PATH.
func postgresBin(t testing.TB) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		t.Fatal("this test needs PostgreSQL: `make setup` installs it")
	}
	return filepath.Dir(found[len(found)-1])
}

func credentialOf(t testing.TB, name string) *syscall.Credential {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, uerr := strconv.ParseUint(u.Uid, 10, 32)
	gid, gerr := strconv.ParseUint(u.Gid, 10, 32)
	if uerr != nil || gerr != nil {
		t.Fatalf("user %s has the IDs %s and %s", name, u.Uid, u.Gid)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// Database makes an empty database and returns its URL. It lives as long as the server.
func (p *Postgres) Database(t testing.TB) string {
	t.Helper()
	name := "test_" + strings.ToLower(rand.Text())
	if err := p.exec(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	return p.url(name)
}

func (p *Postgres) exec(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, p.url("postgres"))
	if err != nil {
		return fmt.Errorf("PostgreSQL: %w", err)
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is lost with it
	_, err = conn.Exec(ctx, statement)
	return err
}

func (p *Postgres) url(database string) string {
	q := url.Values{"host": {p.Dir}, "user": {"kiln"}, "sslmode": {"disable"}}
	return "postgres:///" + database + "?" + q.Encode()
}
