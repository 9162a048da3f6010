package builder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/executor"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/sys/user"
)

// The host's certificate bundle appears in RUN steps below /dev, which is a tmpfs that
// the runtime makes for each container: nothing of it, not even a mount point, can
// reach the image. It is named by environment variables rather than mounted over the
// image's own bundle, because a package that updates that bundle replaces the file,
// which fails on a mount point.
const (
	caDir      = "/dev/kiln-ca"
	caBundle   = caDir + "/bundle.pem"
	caAptConf  = caDir + "/apt.conf"
	caWgetConf = caDir + "/wgetrc"
)

// caEnv lists what well-known programs read the path of a bundle from: OpenSSL and Go,
// curl, git, Python's pip and requests, Node, Cargo, AWS tools, gRPC, apt, wget.
func caEnv() []string {
	env := make([]string, 0, 16)
	for _, name := range []string{
		"SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT", "REQUESTS_CA_BUNDLE",
		"NODE_EXTRA_CA_CERTS", "CARGO_HTTP_CAINFO", "AWS_CA_BUNDLE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
		"NIX_SSL_CERT_FILE", "DENO_CERT",
	} {
		env = append(env, name+"="+caBundle)
	}
	return append(env, "APT_CONFIG="+caAptConf, "WGETRC="+caWgetConf)
}

// prepareCA copies the bundle and the small files that point to it into dir, so that
// a bundle which changes or is a symlink cannot disturb a running build.
func prepareCA(dir, bundle string) error {
	pem, err := os.ReadFile(bundle)
	if err != nil {
		return fmt.Errorf("certificate bundle: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	files := map[string][]byte{
		caBundle:   pem,
		caAptConf:  []byte("Acquire::https::CAInfo \"" + caBundle + "\";\n"),
		caWgetConf: []byte("ca_certificate=" + caBundle + "\n"),
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(name)), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// caExecutor makes the certificate bundle visible in every container it runs.
// Variables that the Dockerfile sets win.
type caExecutor struct {
	executor.Executor
	dir string
}

func (e caExecutor) Run(ctx context.Context, id string, root executor.Mount, mounts []executor.Mount, process executor.ProcessInfo, started chan<- struct{}) (resourcestypes.Recorder, error) {
	process.Meta.Env = addMissing(process.Meta.Env, caEnv())
	mounts = append(mounts[:len(mounts):len(mounts)], executor.Mount{
		Src: hostDir(e.dir), Dest: caDir, Readonly: true,
	})
	return e.Executor.Run(ctx, id, root, mounts, process, started)
}

// addMissing appends those of extra whose name env does not have.
func addMissing(env, extra []string) []string {
	have := make(map[string]bool, len(env))
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		have[name] = true
	}
	out := env[:len(env):len(env)]
	for _, kv := range extra {
		if name, _, _ := strings.Cut(kv, "="); !have[name] {
			out = append(out, kv)
		}
	}
	return out
}

// hostDir is a directory of the host to be mounted read-only.
type hostDir string

func (d hostDir) Mount(_ context.Context, readonly bool) (executor.MountableRef, error) {
	if !readonly {
		return nil, errors.New("host folder may only be mounted read-only")
	}
	return d.ref(), nil
}

func (d hostDir) ref() executor.MountableRef { return hostDirRef(d) }

type hostDirRef string

func (d hostDirRef) Mount() ([]mount.Mount, func() error, error) {
	m := mount.Mount{Type: "bind", Source: string(d), Options: []string{"rbind", "ro"}}
	return []mount.Mount{m}, func() error { return nil }, nil
}

func (d hostDirRef) IdentityMapping() *user.IdentityMapping { return nil }
