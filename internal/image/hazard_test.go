package image_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/image"
	"github.com/kilnvm/kiln/internal/image/imagetest"
)

// attempt resolves and builds; a success is closed.
func attempt(ctx context.Context, b *image.Builder, src kiln.Source, progress kiln.Progress) error {
	bases, err := b.Resolve(ctx, src, progress)
	if err != nil {
		return err
	}
	img, err := b.Build(ctx, src, bases, progress)
	if err != nil {
		return err
	}
	return img.Close()
}

// brokenDockerfile is one mistake and what the user must be told. "BASE" stands for the
// base image.
type brokenDockerfile struct {
	name       string
	dockerfile string
	options    kiln.BuildOptions
	line, exit int
	code       kiln.ErrorCode // "" means build_failed
	message    string         // regular expression
	output     string         // in the last lines, if not empty
	hint       string         // in the hint, if not empty
}

func brokenDockerfiles() []brokenDockerfile {
	return []brokenDockerfile{
		{name: "missing Dockerfile", options: kiln.BuildOptions{Dockerfile: "absent"}, message: `no such file in the build context`},
		{name: "Dockerfile outside", options: kiln.BuildOptions{Dockerfile: "../x"}, message: `cannot be read`},
		{name: "empty", dockerfile: "\n\n", message: `the Dockerfile is empty`},
		{name: "only comments", dockerfile: "# nothing\n", line: 1, message: `file with no instructions`},
		{name: "unknown instruction", dockerfile: "FROM BASE\nRUM true\n", line: 2, message: `unknown instruction: RUM`},
		{name: "missing backslash", dockerfile: "FROM BASE\nRUN echo a\n  && echo b\n", line: 3, message: `unknown instruction: &&`, hint: "backslash"},
		{name: "no FROM", dockerfile: "RUN true\n", line: 1, message: `no build stage in current context`, hint: "FROM"},
		{name: "FROM without name", dockerfile: "FROM\n", line: 1, message: `FROM requires`},
		{name: "FROM with bad name", dockerfile: "FROM Not//A_Name\n", line: 1, message: `invalid reference format|must be lowercase`},
		{name: "FROM with empty argument", dockerfile: "ARG B\nFROM ${B}\n", line: 2, message: `base name .* should not be blank`},
		{name: "FROM other platform", dockerfile: "FROM --platform=linux/arm64 BASE\n", line: 1, message: `linux/arm64 is not supported`},
		{name: "COPY --from an unknown image", dockerfile: "FROM BASE AS a\nFROM a AS b\nCOPY --from=127.0.0.1:1/c /x /x\n", code: kiln.CodeUnavailable, message: `my/Dockerfile:3: base image 127.0.0.1:1/c:latest: .*registry 127.0.0.1:1: cannot be reached.*only debian:bookworm`, hint: "mirror"},
		{name: "stages in a circle", dockerfile: "FROM BASE AS a\nCOPY --from=b /x /x\nFROM a AS b\nRUN true\n", line: 2, message: `cannot copy from stage "b", it needs to be defined before`},
		{name: "COPY --from a missing stage", dockerfile: "FROM BASE AS a\nFROM a AS b\nCOPY --from=builder /x /x\n", code: kiln.CodeUnavailable, message: `my/Dockerfile:3: base image builder:latest: `, hint: "no earlier stage is named builder"},
		{name: "mount from a missing stage", dockerfile: "FROM BASE AS a\nFROM a\nRUN --mount=type=bind,from=builder,target=/x true\n", code: kiln.CodeUnavailable, message: `my/Dockerfile:3: base image builder:latest: `, hint: "no earlier stage is named builder"},
		{name: "FROM an ARG without a value", dockerfile: "ARG X\nFROM ${X}\n", line: 2, message: `base name .* should not be blank`, hint: "--build-arg"},
		{name: "unknown target", dockerfile: "FROM BASE AS a\n", options: kiln.BuildOptions{Target: "nope"}, message: `target stage "nope" could not be found`, hint: "FROM"},
		{name: "unknown flag", dockerfile: "FROM BASE\nCOPY --nope x /x\n", line: 2, message: `unknown flag: (--)?nope`},
		{name: "COPY with one argument", dockerfile: "FROM BASE\nCOPY x\n", line: 2, message: `COPY requires at least two arguments`},
		{name: "COPY of a missing file", dockerfile: "FROM BASE\nCOPY absent /x\n", line: 2, message: `"/absent": not found`, hint: ".dockerignore"},
		{name: "COPY of an ignored file", dockerfile: "FROM BASE\n\nCOPY ignored /x\n", line: 3, message: `"/ignored": not found`, hint: ".dockerignore"},
		{name: "COPY from above the context", dockerfile: "FROM BASE\nCOPY ../a-file /x\n", line: 2, message: `"/a-file": not found`, hint: "build context"},
		{name: "COPY --from a missing path", dockerfile: "FROM BASE AS a\nFROM BASE\nCOPY --from=a /absent /x\n", line: 3, message: `/absent: no such file or directory`},
		{name: "ADD with a bad checksum", dockerfile: "FROM BASE\nADD --checksum=md5:1 http://127.0.0.1:1/x /x\n", line: 2, message: `unsupported digest algorithm`},
		{name: "RUN fails", dockerfile: "FROM BASE\nRUN echo before; exit 3\n", line: 2, exit: 3, message: `exit code: 3`, output: "before"},
		{name: "RUN fails in a continued line", dockerfile: "FROM BASE\nENV A=b\nRUN true && \\\n  echo reason >&2 && \\\n  exit 42\n", line: 3, exit: 42, message: `exit code: 42`, output: "reason"},
		{name: "RUN fails in a heredoc", dockerfile: "FROM BASE\nRUN <<EOT\nset -e\necho in heredoc\nfalse\nEOT\n", line: 2, exit: 1, message: `exit code: 1`, output: "in heredoc"},
		{name: "heredoc without end", dockerfile: "FROM BASE\nRUN <<EOT\necho\n", line: 2, message: `unterminated heredoc`},
		{name: "RUN of an unknown command", dockerfile: "FROM BASE\nRUN no-such-command --flag\n", line: 2, exit: 127, message: `exit code: 127`, output: "not found", hint: "does not exist"},
		{name: "RUN of a file that is no program", dockerfile: "FROM BASE\nRUN /etc/passwd\n", line: 2, exit: 126, message: `exit code: 126`, hint: "executable"},
		{name: "RUN is killed", dockerfile: "FROM BASE\nRUN sh -c 'kill -9 $$'; exit $?\n", line: 2, exit: 137, message: `exit code: 137`, hint: "memory"},
		{name: "RUN without a shell", dockerfile: "FROM scratch\nRUN true\n", line: 2, message: `exec: "/bin/sh": .*no such file`, hint: "no shell"},
		{name: "exec form of a missing program", dockerfile: "FROM BASE\nRUN [\"/no/such\"]\n", line: 2, message: `exec: "/no/such": .*no such file`, hint: "does not exist"},
		{name: "RUN with a missing secret", dockerfile: "FROM BASE\nRUN --mount=type=secret,id=tok,required=true true\n", line: 2, message: `secret`, hint: "secret"},
		{name: "RUN with a bad mount", dockerfile: "FROM BASE\nRUN --mount=type=nope true\n", line: 2, message: `unsupported mount type "nope"`},
		{name: "privileged RUN", dockerfile: "FROM BASE\nRUN --security=insecure true\n", line: 2, message: `security.insecure is not allowed`, hint: "privileged"},
		{name: "USER that is not there", dockerfile: "FROM BASE\nUSER nobody-here\nRUN true\n", line: 3, message: `nobody-here`},
		{name: "apt package that is not there", dockerfile: "FROM BASE\nRUN echo 'E: Unable to locate package nope' >&2; exit 100\n", line: 2, exit: 100, message: `exit code: 100`, output: "Unable to locate package nope"},
		{name: "ENV without value", dockerfile: "FROM BASE\nENV\n", line: 2, message: `ENV requires`},
		{name: "bad EXPOSE", dockerfile: "FROM BASE\nEXPOSE web\n", line: 2, message: `web`},
		{name: "bad substitution", dockerfile: "FROM BASE\nENV A=${B\n", line: 2, message: `substitution`},
		{name: "required argument", dockerfile: "FROM BASE\nARG V\nENV A=\"${V:?version is missing}\"\n", line: 3, message: `version is missing`},
		{name: "ONBUILD of ONBUILD", dockerfile: "FROM BASE\nONBUILD ONBUILD RUN true\n", line: 2, message: `ONBUILD`},
	}
}

func TestHazard23BrokenDockerfiles(t *testing.T) {
	b := imagetest.Builder(t)
	for _, tc := range brokenDockerfiles() {
		t.Run(tc.name, func(t *testing.T) {
			src := imagetest.Source(t, map[string]string{
				"Dockerfile": strings.ReplaceAll(tc.dockerfile, "BASE", imagetest.BaseImage),
				"a":          "a", "b": "b", "ignored": "", ".dockerignore": "ignored\n",
			})
			src.Options = tc.options
			src.DisplayName = "my/Dockerfile"
			err := attempt(t.Context(), b, src, kiln.DiscardProgress)
			t.Log(err)
			if tc.code != "" {
				checkKnown(t, err, tc)
				return
			}
			var fault *kiln.BuildError
			if !errors.As(err, &fault) {
				t.Fatalf("not a build error: %#v", err)
			}
			if fault.Stage != kiln.StageImage || fault.File != "my/Dockerfile" {
				t.Errorf("stage %q, file %q", fault.Stage, fault.File)
			}
			if fault.Line != tc.line || fault.ExitCode != tc.exit {
				t.Errorf("line %d, exit code %d; want %d, %d", fault.Line, fault.ExitCode, tc.line, tc.exit)
			}
			if fault.Line > 0 && fault.Source != strings.Split(strings.ReplaceAll(tc.dockerfile, "BASE", imagetest.BaseImage), "\n")[fault.Line-1] {
				t.Errorf("source = %q", fault.Source)
			}
			if !regexp.MustCompile(tc.message).MatchString(fault.Message) {
				t.Errorf("message = %q, want %q", fault.Message, tc.message)
			}
			if !strings.Contains(strings.Join(fault.Output, "\n"), tc.output) {
				t.Errorf("output = %q, want %q in it", fault.Output, tc.output)
			}
			if !strings.Contains(fault.Hint, tc.hint) {
				t.Errorf("hint = %q, want %q in it", fault.Hint, tc.hint)
			}
		})
	}
}

// checkKnown is for failures that are not the Dockerfile's fault.
func checkKnown(t *testing.T, err error, tc brokenDockerfile) {
	t.Helper()
	var known *kiln.Error
	if !errors.As(err, &known) || known.Code != tc.code {
		t.Fatalf("error %v, want one with code %s", err, tc.code)
	}
	if !regexp.MustCompile(tc.message).MatchString(known.Message) || !strings.Contains(known.Hint, tc.hint) {
		t.Errorf("message = %q, hint = %q", known.Message, known.Hint)
	}
}

// TestHazard22EndlessRun stops builds that would never end, by deadline and by hand.
func TestHazard22EndlessRun(t *testing.T) {
	b := imagetest.Builder(t)
	src := imagetest.Source(t, map[string]string{
		"Dockerfile": "FROM " + imagetest.BaseImage + "\nRUN echo $((40+2))-started; exec sleep 987654\n",
	})
	cases := []struct {
		name  string
		code  kiln.ErrorCode
		limit time.Duration
	}{
		{"cancelled", kiln.CodeCanceled, time.Hour},
		{"deadline", kiln.CodeTimeout, 8 * time.Second},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), tc.limit)
			defer cancel()
			lines := make(chan string, 1000)
			started := make(chan struct{})
			go func() {
				for line := range lines {
					if strings.Contains(line, "42-started") {
						close(started)
					}
				}
			}()
			done := make(chan error, 1)
			go func() { done <- attempt(ctx, b, src, &logged{seen: lines}) }()
			select {
			case <-started:
			case err := <-done:
				t.Fatalf("the build ended early: %v", err)
			}
			waitUntil(t, "the command runs", func() bool { return len(sleepers()) == 1 })
			if tc.code == kiln.CodeCanceled {
				cancel()
			}
			err := <-done
			close(lines)
			if kiln.CodeOf(err) != tc.code {
				t.Errorf("code %s, want %s: %v", kiln.CodeOf(err), tc.code, err)
			}
			if !strings.Contains(err.Error(), "RUN echo") {
				t.Errorf("the error does not say what was running: %v", err)
			}
			waitUntil(t, "the command ends", func() bool { return len(sleepers()) == 0 })
		})
	}
	src = imagetest.Source(t, map[string]string{"Dockerfile": "FROM " + imagetest.BaseImage + "\nRUN true\n"})
	if err := attempt(t.Context(), b, src, kiln.DiscardProgress); err != nil {
		t.Errorf("the next build fails: %v", err)
	}
}

// sleepers returns the processes that run the endless command.
func sleepers() []string {
	var pids []string
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range paths {
		if b, err := os.ReadFile(path); err == nil && string(b) == "sleep\x00987654\x00" {
			pids = append(pids, filepath.Base(filepath.Dir(path)))
		}
	}
	return pids
}

// waitUntil waits for something the kernel has no event for.
func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			t.Fatalf("waited too long until %s", what)
		}
	}
}

// TestHazard25DiskFull builds on a disk that is smaller than the base image.
func TestHazard25DiskFull(t *testing.T) {
	opts := imagetest.Options(t)
	opts.StateDir = t.TempDir()
	if err := unix.Mount("tmpfs", opts.StateDir, "tmpfs", 0, "size=100m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(opts.StateDir, 0); err != nil {
			t.Error(err)
		}
	})
	b, err := image.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	src := imagetest.Source(t, map[string]string{"Dockerfile": "FROM " + imagetest.BaseImage + "\nRUN true\n"})
	err = attempt(t.Context(), b, src, kiln.DiscardProgress)
	if kiln.CodeOf(err) != kiln.CodeExhausted || !strings.Contains(err.Error(), opts.StateDir) {
		t.Errorf("error = %v, want one that says that the disk is full", err)
	}
}
