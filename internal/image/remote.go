package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"time"

	"github.com/moby/buildkit/client"

	"github.com/kilnvm/kiln"
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

func (r *remote) solve(ctx context.Context, run solveFunc) (kiln.EntrySource, error) {
	c, err := r.connect(ctx)
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
		err := run(ctx, c, export)
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

// connect finds out what listens and returns a client for it.
func (r *remote) connect(ctx context.Context) (*client.Client, error) {
	engine, err := r.isDockerEngine(ctx)
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeUnavailable, "builder %s cannot be reached: %w", r.display, err).
			WithHint("start it, or configure no address to build without a daemon")
	}
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

// hijack turns a request to Docker Engine into a connection for another protocol.
func (r *remote) hijack(ctx context.Context, path, proto string, meta map[string][]string) (net.Conn, error) {
	conn, err := r.dial(ctx)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://docker"+path, nil)
	if err != nil {
		conn.Close()
		return nil, err
	}
	for name, values := range meta {
		req.Header[textproto.CanonicalMIMEHeaderKey(name)] = values
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", proto)
	upgraded, err := upgrade(conn, req)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("docker engine %s: %w", path, err)
	}
	return upgraded, nil
}

func upgrade(conn net.Conn, req *http.Request) (net.Conn, error) {
	if err := conn.SetDeadline(time.Now().Add(connectTimeout)); err != nil {
		return nil, err
	}
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	buffered := bufio.NewReader(conn)
	resp, err := http.ReadResponse(buffered, req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		resp.Body.Close()
		return nil, fmt.Errorf("answered %s", resp.Status)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return &bufferedConn{Conn: conn, r: buffered}, nil
}

// bufferedConn reads first what arrived together with the answer.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *bufferedConn) Read(p []byte) (int, error) { return c.r.Read(p) }
