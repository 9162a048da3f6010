package test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnvm/kiln/internal/testkit"
)

// killedIn is an operation on sandboxes in which a server dies.
type killedIn struct {
	name   string
	args   []string // of `kiln sandbox`; ID stands for a running sandbox
	paused bool     // that sandbox is paused
	shows  shows    // how one sees that it has begun
	latest time.Duration
}

// shows is where the first file of an operation appears.
type shows int

const (
	beside shows = iota // a folder of a new sandbox
	inside              // in the sandbox's folder
	nowhere
)

var killedOperations = []killedIn{
	{name: "cold start", args: []string{"create", "-t", "crash", "--boot-mode", "cold", "--persistent"}, latest: 4 * time.Second},
	{name: "start from a snapshot", args: []string{"create", "-t", "crash", "--boot-mode", "snapshot", "--persistent"}, latest: 300 * time.Millisecond},
	{name: "start by a VMM that waits", args: []string{"create", "-t", "crash", "--boot-mode", "spawned"}, shows: nowhere, latest: 100 * time.Millisecond},
	{name: "pause", args: []string{"pause", "ID"}, shows: inside, latest: 300 * time.Millisecond},
	{name: "wake", args: []string{"wake", "ID"}, paused: true, shows: nowhere, latest: 300 * time.Millisecond},
	{name: "fork", args: []string{"fork", "--count", "3", "ID"}, latest: 500 * time.Millisecond},
	{name: "fork of a paused one", args: []string{"fork", "--count", "3", "ID"}, paused: true, latest: 300 * time.Millisecond},
}

// TestServerKilledInSandboxOperations kills a whole server with -9 while it starts, pauses,
// wakes and copies sandboxes, and makes and hands out warm slots. The next one has each
// sandbox either paused, with all that was in it, or ended with a reason; and nothing of the
// others is left.
func TestServerKilledInSandboxOperations(t *testing.T) {
	s := newServer(t)
	before := s.blobs()
	s.must("templates", "build", "crash", busyboxContext(t, ""))
	for range testkit.Rounds(1, 20) {
		for _, op := range killedOperations {
			t.Run(op.name, func(t *testing.T) { s.inTest(t, func() { s.killIn(op) }) })
		}
		t.Run("claims of warm slots", func(t *testing.T) { s.inTest(t, s.killInClaims) })
		t.Run("filling of the warm pool", func(t *testing.T) { s.inTest(t, s.killInFilling) })
	}
	s.must("templates", "delete", "crash")
	s.leaveNothing(before)
}

// inTest runs f with s's failures being t's.
func (s *server) inTest(t *testing.T, f func()) {
	outer := s.t
	s.t = t
	defer func() { s.t = outer }()
	f()
}

func (s *server) killIn(op killedIn) {
	s.t.Helper()
	id := ""
	args := slices.Clone(op.args)
	if i := slices.Index(args, "ID"); i >= 0 {
		id = strings.TrimSpace(s.must("sandbox", "create", "-t", "crash", "--persistent"))
		s.must("sandbox", "exec", id, "--", "sh", "-c", "echo "+id+" > /mark; sync")
		if op.paused {
			s.must("sandbox", "pause", id)
		}
		args[i] = id
	}
	if slices.Contains(args, "spawned") {
		s.awaitSpawned()
	}
	dir := filepath.Join(s.dataDir, "sandboxes")
	if op.shows == inside {
		dir = filepath.Join(dir, id)
	}
	begun := created(s.t, dir)
	var all sync.WaitGroup
	all.Go(func() { s.kiln(append([]string{"sandbox"}, args...)...) }) // whatever becomes of it
	if op.shows != nowhere {
		begun(1)
	}
	time.Sleep(rand.N(op.latest)) // chance chooses the place
	s.kill()
	all.Wait()
	s.start()
	s.onlyPausedAreLeft(id)
}

// killInClaims has more clients at once than there are warm slots. What a slot became is
// known to the next server, and no two clients were given the same.
func (s *server) killInClaims() {
	s.t.Helper()
	s.setSlots(2)
	s.awaitShelf("two slots", func(ready, _ int) bool { return ready == 2 })
	before := s.vms()
	if len(before) < 2 {
		s.t.Errorf("two slots are %q", before)
	}
	given := make([]string, 4)
	var all sync.WaitGroup
	for i := range given {
		all.Go(func() { given[i] = strings.TrimSpace(s.kiln("sandbox", "create", "-t", "crash").stdout) })
	}
	time.Sleep(rand.N(600 * time.Millisecond)) // chance chooses the place
	s.kill()
	all.Wait()
	s.start()
	s.emptyPool()
	lost := map[string]bool{}
	for _, sb := range s.sandboxes("--status", "failed") {
		lost[sb.ID] = true
	}
	for i, id := range given {
		switch {
		case id == "":
		case slices.Contains(given[:i], id):
			s.t.Errorf("two clients were given sandbox %s", id)
		case !lost[id]:
			s.t.Errorf("sandbox %s was given to a client, and nobody knows it", id)
		}
	}
	s.onlyPausedAreLeft("")
}

// killInFilling has the pool being filled. The next server fills it with slots of its own.
func (s *server) killInFilling() {
	s.t.Helper()
	begun := created(s.t, filepath.Join(s.dataDir, "sandboxes"))
	s.setSlots(3)
	begun(1 + rand.IntN(2))
	time.Sleep(rand.N(time.Second)) // chance chooses the place
	s.kill()
	old := s.slotNames()
	s.start()
	s.awaitShelf("three slots", func(ready, _ int) bool { return ready == 3 })
	for _, name := range s.slotNames() {
		if slices.Contains(old, name) {
			s.t.Errorf("%s is of the server that was killed", name)
		}
	}
	for range 3 {
		if got := s.must("sandbox", "run", "-t", "crash", "--boot-mode", "warm", "--", "echo", "here"); got != "here\n" {
			s.t.Errorf("a warm slot said %q", got)
		}
	}
	s.kill() // with whatever recent demand has made
	s.start()
	s.emptyPool()
	s.onlyPausedAreLeft("")
}

func (s *server) setSlots(n int) {
	s.t.Helper()
	s.must("pool", "set", "crash", "--slots", strconv.Itoa(n))
}

// slotNames returns the folders of sandboxes and slots.
func (s *server) slotNames() (names []string) {
	s.t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.dataDir, "sandboxes"))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// emptyPool wants no slots any more, and waits until there are none.
func (s *server) emptyPool() {
	s.t.Helper()
	s.setSlots(0)
	for deadline := time.Now().Add(time.Minute); len(s.vms())+len(s.slotNames()) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("folders %q and VMs %q without a pool", s.slotNames(), s.vms())
		}
	}
}

// awaitSpawned waits for a VMM that was started ahead: demand has to be noticed first.
func (s *server) awaitSpawned() {
	s.t.Helper()
	s.must("sandbox", "run", "-t", "crash", "--", "true")
	s.awaitShelf("a VMM started ahead", func(_, spawned int) bool { return spawned > 0 })
}

// awaitShelf waits until a shelf of the pool has what is wanted.
func (s *server) awaitShelf(what string, wanted func(ready, spawned int) bool) {
	s.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		var shelves []struct {
			Ready   int `json:"ready"`
			Spawned int `json:"spawned"`
		}
		if err := json.Unmarshal([]byte(s.must("pool", "list", "-o", "json")), &shelves); err != nil {
			s.t.Fatal(err)
		}
		for _, shelf := range shelves {
			if wanted(shelf.Ready, shelf.Spawned) {
				return
			}
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("the pool has not %s: %+v", what, shelves)
		}
	}
}

// listed is what of a sandbox matters here.
type listed struct {
	ID     string `json:"id"`
	Status string `json:"status"`
	Reason string `json:"reason"`
}

func (s *server) sandboxes(filter ...string) (list []listed) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(s.must(append([]string{"sandbox", "list", "-o", "json"}, filter...)...)), &list); err != nil {
		s.t.Fatal(err)
	}
	return list
}

// onlyPausedAreLeft looks at what a server has of the one before it: paused sandboxes, which
// go on where they were, and the ends of all others. marked is "" or a sandbox that has its
// name in a file.
func (s *server) onlyPausedAreLeft(marked string) {
	s.t.Helper()
	var paused []string
	for _, sb := range s.sandboxes() {
		paused = append(paused, sb.ID)
		if sb.Status != "paused" {
			s.t.Errorf("after the restart %+v", sb)
		}
	}
	slices.Sort(paused)
	if folders := s.slotNames(); !slices.Equal(folders, paused) {
		s.t.Errorf("folders %q, paused sandboxes %q", folders, paused)
	}
	if vms := s.vms(); len(vms) > 0 {
		s.t.Errorf("VMs that nobody owns: %q", vms)
	}
	for _, sb := range s.sandboxes("--status", "failed") {
		if !strings.Contains(sb.Reason, "server restarted: lost while ") && !strings.Contains(sb.Reason, "the server is stopping") {
			s.t.Errorf("no word of what became of %+v", sb)
		}
	}
	for _, id := range paused {
		got := s.must("sandbox", "exec", id, "--", "sh", "-c", "cat /mark 2>/dev/null; echo here")
		if want := "here\n"; got != want && got != marked+"\n"+want || id == marked && got == want {
			s.t.Errorf("sandbox %s came back with %q", id, got)
		}
		s.must("sandbox", "destroy", id)
	}
	if marked != "" && !slices.Contains(paused, marked) {
		r := s.kiln("sandbox", "exec", marked, "--", "true")
		if r.code == 0 || !strings.Contains(r.stderr, "server restarted: lost while ") {
			s.t.Errorf("a lost sandbox: exit code %d, %s", r.code, r.stderr)
		}
	}
}

// vms returns the command lines of the VMs of this server's sandboxes.
func (s *server) vms() (list []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		line, _ := os.ReadFile(file) // it may have ended
		if text := strings.ReplaceAll(string(line), "\x00", " "); strings.Contains(text, "qemu") && strings.Contains(text, s.dataDir) {
			list = append(list, text)
		}
	}
	return list
}

// TestServerStoppedUnderCreates asks a server to stop while 30 sandboxes start and others
// run. Each request gets a sandbox or a reason, the server ends well, and only the
// persistent one is there afterwards.
func TestServerStoppedUnderCreates(t *testing.T) {
	s := newServer(t)
	s.must("templates", "build", "crash", busyboxContext(t, ""))
	plain := strings.TrimSpace(s.must("sandbox", "create", "-t", "crash"))
	kept := strings.TrimSpace(s.must("sandbox", "create", "-t", "crash", "--persistent"))
	s.must("sandbox", "exec", kept, "--", "sh", "-c", "echo "+kept+" > /mark")
	begun := created(t, filepath.Join(s.dataDir, "sandboxes"))
	var all sync.WaitGroup
	for range 30 {
		all.Go(func() {
			r := s.kiln("sandbox", "create", "-t", "crash")
			if r.code != 0 && !strings.HasPrefix(r.stderr, "kiln: ") {
				t.Errorf("exit code %d, %s", r.code, r.stderr)
			}
			if strings.Contains(r.stderr, "internal error") {
				t.Errorf("not a reason: %s", r.stderr)
			}
		})
	}
	begun(3)
	s.stop()
	all.Wait()
	if vms := s.vms(); len(vms) > 0 {
		t.Errorf("left running: %q", vms)
	}
	s.start()
	for _, sb := range s.sandboxes("--status", "failed,deleted") {
		if sb.Reason == "" || strings.Contains(sb.Reason, "lost") {
			t.Errorf("a server that stopped in order left %+v", sb)
		}
	}
	if r := s.kiln("sandbox", "exec", plain, "--", "true"); r.code == 0 || !strings.Contains(r.stderr, "the server stopped") {
		t.Errorf("exec: exit code %d, %s", r.code, r.stderr)
	}
	s.onlyPausedAreLeft(kept)

	// A second server on the same data directory leaves the first alone.
	running := strings.TrimSpace(s.must("sandbox", "create", "-t", "crash"))
	second := exec.Command(filepath.Join(s.bin, "kiln"), "serve", "--data-dir", s.dataDir, "--listen", "127.0.0.1:0", "--config", s.configFile())
	second.Env = s.env()
	out, err := second.CombinedOutput()
	if want := fmt.Sprintf("in use by another server (process %d,", s.cmd.Process.Pid); err == nil || !strings.Contains(string(out), want) {
		t.Errorf("a second server: %v\n%s", err, out)
	}
	if got := s.must("sandbox", "exec", running, "--", "echo", "still here"); got != "still here\n" {
		t.Errorf("after a second server tried: %q", got)
	}
}
