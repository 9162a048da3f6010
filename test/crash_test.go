package test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/testkit"
)

// moment is a place in a build, recognised by the record that says that it was reached.
type moment struct {
	name  string
	stage kiln.Stage
	kind  kiln.LogKind
	line  string // what the record's line has in it
}

// The moments in which a server dies, in their order. Each of the snapshot's steps begins
// where the one before it is done.
var (
	inSource  = moment{"source", kiln.StageSource, kiln.LogBegin, ""}
	inImage   = moment{"image", kiln.StageImage, kiln.LogBegin, ""}
	inRun     = moment{"RUN step", kiln.StageImage, kiln.LogStep, "42-runs"}
	inRootfs  = moment{"rootfs", kiln.StageRootfs, kiln.LogBegin, ""}
	inBoot    = moment{"boot", kiln.StageSnapshot, kiln.LogBegin, ""}
	inReady   = moment{"get ready", kiln.StageSnapshot, kiln.LogText, " boot: "}
	inSave    = moment{"save", kiln.StageSnapshot, kiln.LogText, " get ready: "}
	inTryOut  = moment{"try out", kiln.StageSnapshot, kiln.LogText, " save: "}
	inKeep    = moment{"keep", kiln.StageSnapshot, kiln.LogText, " try out: "}
	inPromote = moment{"promote", kiln.StagePromote, kiln.LogBegin, ""}
)

// logRecord is what a build's log in the data directory has.
type logRecord struct {
	Stage kiln.Stage   `json:"stage"`
	Kind  kiln.LogKind `json:"kind"`
	Line  string       `json:"line"`
}

func (m moment) is(r logRecord) bool {
	return r.Stage == m.stage && r.Kind == m.kind && strings.Contains(r.Line, m.line)
}

// TestHazard24KilledInEveryStage kills a whole server with -9 in every stage of real builds.
// The next one takes the build up where it was, while the version before it serves; the
// build ends; and nothing is left on the host or in the data directory.
func TestHazard24KilledInEveryStage(t *testing.T) {
	s := newServer(t)
	c := &crashes{server: s, watch: watchBuilds(t, filepath.Join(s.dataDir, "builds"))}
	recipes := c.blobs() // of the built-in templates
	for round := range testkit.Rounds(1, 20) {
		// The quick round kills at once; the others also later, wherever the build is then.
		latest := []time.Duration{0, 30 * time.Millisecond, time.Second, 0}[round%4]
		// Two deaths for one build: the third would be too many.
		for _, twice := range [][]moment{{inSource, inImage}, {inRun, inRootfs}, {inBoot, inReady}, {inSave, inTryOut}, {inKeep, inPromote}} {
			t.Run(twice[0].name+" and "+twice[1].name, func(t *testing.T) {
				c.in(t).survive(latest, twice...)
			})
		}
	}
	t.Run("a log is followed across it", func(t *testing.T) { c.in(t).followAcross() })
	t.Run("three deaths", func(t *testing.T) { c.in(t).dieTooOften() })
	t.Run("nothing left", func(t *testing.T) {
		c.in(t).must("templates", "delete", "crash")
		c.server.in(t).leaveNothing(recipes)
	})
}

// crashes is a server that is killed again and again, and the template it builds.
type crashes struct {
	*server
	watch  *buildWatch
	builds int
}

// in is c for the time of a sub-test, whose failures are its own.
func (c *crashes) in(t *testing.T) *crashes {
	outer := c.t
	c.t = t
	t.Cleanup(func() { c.t = outer })
	return c
}

// request asks for the next version, which has its number in a file.
func (c *crashes) request() {
	c.t.Helper()
	c.builds++
	dir := busyboxContext(c.t, "COPY number /number\nRUN echo $((40+2))-runs; sleep 1\n")
	for name, text := range map[string]string{
		"number":             fmt.Sprintln(c.builds),
		"kiln-template.toml": "start_cmd = \"echo up > /up; sleep 100000\"\nready_cmd = \"grep up /up\"\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			c.t.Fatal(err)
		}
	}
	c.watch.forget(c.t)
	c.must("templates", "build", "crash", dir, "--detach")
}

// killIn kills the server when the build reaches a moment, or a little later, and starts it
// again. It reports false when the build had ended before.
func (c *crashes) killIn(m moment, latest time.Duration) bool {
	c.t.Helper()
	if c.ended() {
		return false
	}
	if reached, err := c.watch.until(c.t, m); err != nil {
		c.t.Fatalf("%s: %v\n%s\n%s", m.name, err, c.kiln("templates", "logs", "crash").stdout, c.logText())
	} else if !reached {
		return false
	}
	if latest > 0 {
		time.Sleep(rand.N(latest)) // chance chooses the place
	}
	c.kill()
	c.watch.forget(c.t)
	c.start()
	c.readyWhileBuilding()
	return true
}

// readyWhileBuilding looks at the template as the restarted server has it.
func (c *crashes) readyWhileBuilding() {
	c.t.Helper()
	if shown := c.template(); c.builds > 1 && shown.Status != "ready" {
		c.t.Errorf("a template with a ready version is %q after a crash", shown.Status)
	}
}

// shownTemplate is what of `templates show -o json` matters here.
type shownTemplate struct {
	Status  string `json:"status"`
	Version int    `json:"version"`
	Latest  struct {
		Version    int              `json:"version"`
		Status     string           `json:"status"`
		BuildError *kiln.BuildError `json:"build_error"`
	} `json:"latest"`
}

func (c *crashes) template() (shown shownTemplate) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(c.must("templates", "show", "crash", "-o", "json")), &shown); err != nil {
		c.t.Fatal(err)
	}
	return shown
}

func (c *crashes) ended() bool {
	status := c.template().Latest.Status
	return status == "done" || status == "failed"
}

// end waits for the end of the build. By then at most a minute has passed, however often the
// server was killed before.
func (c *crashes) end() shownTemplate {
	c.t.Helper()
	begun := time.Now()
	log := c.kiln("templates", "logs", "-f", "crash")
	if took := time.Since(begun); took > time.Minute {
		c.t.Errorf("the build ended %s after the restart", took)
	}
	shown := c.template()
	if !c.ended() {
		c.t.Fatalf("the build is %q\n%s%s", shown.Latest.Status, log.stdout, log.stderr)
	}
	if left := c.halfMade(); len(left) > 0 {
		c.t.Errorf("left behind: %q", left)
	}
	return shown
}

// survive kills the server in each of the moments of one build, which nevertheless ends well.
func (c *crashes) survive(latest time.Duration, moments ...moment) {
	c.t.Helper()
	c.request()
	for _, m := range moments {
		if !c.killIn(m, latest) {
			break
		}
	}
	shown := c.end()
	if shown.Latest.Status != "done" || shown.Version != c.builds {
		c.t.Fatalf("%+v\n%s", shown, c.logText())
	}
	if got, want := c.must("sandbox", "run", "-t", "crash", "--", "cat", "/number", "/up"), fmt.Sprintf("%d\nup\n", c.builds); got != want {
		c.t.Errorf("a sandbox printed %q, want %q", got, want)
	}
}

// followAcross kills the server while its log is followed: the reader gets every line once.
func (c *crashes) followAcross() {
	c.t.Helper()
	c.listen = strings.TrimPrefix(readServer(c.t, c.dataDir), "http://") // the next one is found where this one was
	defer func() { c.listen = "" }()
	c.request()
	follow := exec.CommandContext(c.t.Context(), filepath.Join(c.bin, "kiln"), "templates", "logs", "-f", "crash")
	follow.Env = c.env()
	out, err := follow.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	var stderr bytes.Buffer
	follow.Stderr = &stderr
	if err := follow.Start(); err != nil {
		c.t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	first, err := lines.ReadString('\n') // it has begun
	if err != nil {
		c.t.Fatal(err)
	}
	if !c.killIn(inRun, 0) {
		c.t.Fatal("the build has ended")
	}
	rest, err := io.ReadAll(lines)
	if err = errors.Join(err, follow.Wait()); err != nil {
		c.t.Errorf("%v\n%s", err, stderr.String())
	}
	c.end()
	all := c.must("templates", "logs", "crash")
	if followed := first + string(rest); followed != all {
		c.t.Errorf("followed\n%s\nthe log has\n%s", followed, all)
	}
	if !strings.Contains(all, "attempt 2") || strings.Count(all, "42-runs") < 2 {
		c.t.Errorf("the build was not begun twice:\n%s", all)
	}
}

// dieTooOften lets a build seem to kill its server three times: then it fails, says so, and
// the version before it serves.
func (c *crashes) dieTooOften() {
	before := c.template().Version
	c.request()
	for _, m := range []moment{inRun, inRun, inRun} {
		if !c.killIn(m, 0) {
			c.t.Fatal("the build has ended")
		}
	}
	shown := c.end()
	why := shown.Latest.BuildError
	if shown.Latest.Status != "failed" || shown.Status != "ready" || shown.Version != before || why == nil || !strings.Contains(why.Message, "died 3 times") {
		c.t.Errorf("%+v, %v", shown, why)
	}
	c.builds = before
	if got := c.must("sandbox", "run", "-t", "crash", "--", "cat", "/number"); got != fmt.Sprintln(before) {
		c.t.Errorf("a sandbox printed %q, want %d", got, before)
	}
}

// buildWatch reads the logs of builds as they are written: through the kernel's events, not
// through the server, so that a short stage still runs when its beginning is seen.
type buildWatch struct {
	dir   string
	file  *os.File         // of inotify
	read  map[string]int64 // how far, by file
	ahead []logRecord      // read and not yet asked for
}

func watchBuilds(t *testing.T, dir string) *buildWatch {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	w := &buildWatch{dir: dir, file: os.NewFile(uintptr(fd), "inotify"), read: map[string]int64{}}
	t.Cleanup(func() { w.file.Close() })
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MODIFY); err != nil {
		t.Fatal(err)
	}
	return w
}

// until returns true when a build has reached m, and false when it has ended.
func (w *buildWatch) until(t *testing.T, m moment) (bool, error) {
	t.Helper()
	if err := w.file.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return false, err
	}
	events := make([]byte, 64<<10)
	for {
		for len(w.ahead) > 0 {
			r := w.ahead[0]
			w.ahead = w.ahead[1:]
			if m.is(r) {
				w.ahead = nil
				return true, nil
			}
			if r.Stage == kiln.StagePromote && r.Kind == kiln.LogText || strings.HasPrefix(r.Line, "failed: ") {
				return false, nil
			}
		}
		if w.ahead = w.news(t); len(w.ahead) > 0 {
			continue
		}
		if _, err := w.file.Read(events); err != nil {
			return false, fmt.Errorf("the build does not come there: %w", err)
		}
	}
}

// forget skips what has been written so far.
func (w *buildWatch) forget(t *testing.T) {
	t.Helper()
	w.news(t)
	w.ahead = nil
}

// news returns the records that were written since it was called last.
func (w *buildWatch) news(t *testing.T) (records []logRecord) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(w.dir, "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	for _, name := range files {
		content, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		// A line that a crash cut short is removed and another written in its place.
		whole := int64(bytes.LastIndexByte(content, '\n') + 1)
		for line := range bytes.Lines(content[min(w.read[name], whole):whole]) {
			var r logRecord
			if err := json.Unmarshal(line, &r); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			records = append(records, r)
		}
		w.read[name] = whole
	}
	return records
}
