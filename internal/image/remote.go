package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/moby/buildkit/client"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/image/base"
)

// connectTimeout bounds connecting to a daemon and the first answer.
const connectTimeout = 5 * time.Second

// remote builds in an existing BuildKit daemon or Docker Engine. The result comes as a
// tar stream: times have whole seconds, and holes in files are lost.
type remote struct {
	network, address string
	display          string
	fromTar          func(io.Reader) (kiln.EntrySource, error)
}

func newRemote(address string, fromTar func(io.Reader) (kiln.EntrySource, error)) (*remote, error) {
	u, err := url.Parse(address)
	if err == nil {
		switch {
		case u.Scheme == "unix" && u.Path != "":
			return &remote{"unix", u.Path, address, fromTar}, nil
		case u.Scheme == "tcp" && u.Host != "":
			return &remote{"tcp", u.Host, address, fromTar}, nil
		}
	}
	return nil, kiln.Errorf(kiln.CodeInvalid, "builder address %q is not understood", address).
		WithHint("use unix:///path/of/socket or tcp://host:port of a BuildKit daemon or Docker Engine")
}

func (r *remote) Close() error { return nil }

func (r *remote) solve(ctx context.Context, bases []base.Image, run func(context.Context, target) error) (kiln.EntrySource, error) {
	engine, err := r.isDockerEngine(ctx)
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeUnavailable, "builder %s cannot be reached: %w", r.display, err).
			WithHint("start it, or configure no address to build without a daemon")
	}
	contexts := layoutContexts(bases)
	if engine {
		if contexts, err = r.loadBases(ctx, bases); err != nil {
			return nil, fmt.Errorf("docker engine %s: %w", r.display, err)
		}
	}
	c, err := r.connect(ctx, engine)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	reader, writer := io.Pipe()
	export := client.ExportEntry{Type: client.ExporterTar, Output: func(map[string]string) (io.WriteCloser, error) {
		return writer, nil
	}}
	solved := make(chan error, 1)
	go func() {
		err := run(ctx, target{client: c, export: export, bases: contexts})
		writer.CloseWithError(err) // nil is EOF: the stream has been closed already
		solved <- err
	}()
	root, readErr := r.fromTar(reader)
	reader.CloseWithError(readErr)
	if err := <-solved; err != nil {
		if root != nil {
			root.Close()
		}
		if readErr != nil && !errors.Is(readErr, err) {
			return nil, readErr // reading failed first and broke the build
		}
		return nil, err
	}
	return root, readErr
}

// connect returns a client for what listens at the address.
func (r *remote) connect(ctx context.Context, engine bool) (*client.Client, error) {
	dial := func(ctx context.Context, _ string) (net.Conn, error) { return r.dial(ctx) }
	var opts []client.ClientOpt
	if engine {
		dial = func(ctx context.Context, _ string) (net.Conn, error) { return r.hijack(ctx, "/grpc", "h2c", nil) }
		opts = append(opts, client.WithSessionDialer(func(ctx context.Context, proto string, meta map[string][]string) (net.Conn, error) {
			return r.hijack(ctx, "/session", proto, meta)
		}))
	}
	opts = append(opts, client.WithContextDialer(dial))
	c, err := client.New(ctx, r.display, opts...)
	if err != nil {
		return nil, fmt.Errorf("builder %s: %w", r.display, err)
	}
	return c, nil
}

func (r *remote) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: connectTimeout}
	return d.DialContext(ctx, r.network, r.address)
}

// isDockerEngine asks for /_ping, which Docker Engine answers over HTTP/1.1 and a
// BuildKit daemon, which speaks HTTP/2 only, does not.
func (r *remote) isDockerEngine(ctx context.Context) (bool, error) {
	conn, err := r.dial(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(connectTimeout)); err != nil {
		return false, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/_ping", nil)
	if err != nil {
		return false, err
	}
	if err := req.Write(conn); err != nil {
		return false, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return false, nil // it listens, but not for HTTP/1.1
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK, nil
}
