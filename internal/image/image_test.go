package image_test

import (
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/image"
	"github.com/kilnvm/kiln/internal/image/imagetest"
	"github.com/kilnvm/kiln/internal/testkit"
)

func TestMain(m *testing.M) {
	imagetest.RunChild()
	if len(os.Args) > 2 && os.Args[1] == parentArg {
		runParent(os.Args[2])
	}
	testkit.Main(m)
}

// logged collects progress.
type logged struct {
	mu    sync.Mutex
	lines []string
	seen  chan string // gets every line if not nil
}

func (l *logged) Log(_ kiln.Stage, line string) {
	l.mu.Lock()
	l.lines = append(l.lines, line)
	l.mu.Unlock()
	if l.seen != nil {
		l.seen <- line
	}
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

// build resolves and builds src and returns the image's configuration and the files
// below /out.
func build(t *testing.T, b *image.Builder, src kiln.Source, progress kiln.Progress) (kiln.ImageConfig, map[string]string) {
	t.Helper()
	bases, err := b.Resolve(t.Context(), src, progress)
	if err != nil {
		t.Fatal(err)
	}
	img, err := b.Build(t.Context(), src, bases, progress)
	if err != nil {
		t.Fatal(err)
	}
	files, err := imagetest.ReadAll(img.Root, func(path string) bool { return strings.HasPrefix(path, "out/") })
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	return img.Config, files
}

// TestBuild goes through what a Dockerfile may contain.
func TestBuild(t *testing.T) {
	b := imagetest.Builder(t)
	src := imagetest.Source(t, map[string]string{
		"hello.txt": "hello\n", "ignored.txt": "x", ".dockerignore": "ignored.txt\n",
		"Dockerfile": strings.ReplaceAll(`# syntax=docker/dockerfile:1
ARG BASE=BASEIMAGE
FROM ${BASE} AS tools
RUN mkdir /made && echo made > /made/file
FROM scratch AS unused
COPY --from=no.such.registry/image:1 / /
FROM ${BASE} AS last
ARG WHO=nobody
ENV GREETING=hi
COPY --from=tools /made /out/
COPY hello.* /out/
COPY <<EOF /out/here
doc $WHO
EOF
RUN <<EOF
set -e
echo "$GREETING $WHO" > /out/greeting
ln -s here /out/link
EOF
RUN --mount=type=cache,target=/cache echo $(ls /cache | wc -l) > /out/cached; touch /cache/x
RUN --mount=type=secret,id=token cp /run/secrets/token /tmp/t; wc -c < /tmp/t > /out/secret; cat /tmp/t; echo; rm /tmp/t
USER 1000:1000
WORKDIR /home/me
EXPOSE 8080/tcp
LABEL a=b
ENTRYPOINT ["/bin/sh", "-c"]
CMD ["id"]
FROM last AS other
RUN false
`, "BASEIMAGE", imagetest.BaseImage)})
	src.Options = kiln.BuildOptions{
		NoCache: true, Target: "last", Args: map[string]string{"WHO": "world"},
		Secrets: map[string][]byte{"token": []byte("s3cr3t-t0ken")},
	}
	progress := &logged{}
	config, files := build(t, b, src, progress)
	t.Log(progress)

	want := map[string]string{
		"out/file": "made\n", "out/hello.txt": "hello\n", "out/here": "doc world\n",
		"out/greeting": "hi world\n", "out/link": "here", "out/cached": "0\n", "out/secret": "12\n",
	}
	for path, content := range want {
		if files[path] != content {
			t.Errorf("%s = %q, want %q", path, files[path], content)
		}
	}
	if config.User != "1000:1000" || config.WorkingDir != "/home/me" || config.Labels["a"] != "b" ||
		len(config.ExposedPorts) != 1 || config.ExposedPorts[0] != "8080/tcp" || config.Entrypoint[1] != "-c" || config.Cmd[0] != "id" {
		t.Errorf("config = %+v", config)
	}
	if log := progress.String(); strings.Contains(log, "s3cr3t-t0ken") {
		t.Error("a secret is in the log")
	} else if !strings.Contains(log, "***") || !strings.Contains(log, "RUN mkdir /made") {
		t.Error("the log does not show what was done")
	}
}
