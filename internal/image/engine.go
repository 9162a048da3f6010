package image

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/kilnvm/kiln/internal/image/base"
)

// Docker Engine runs BuildKit behind its own HTTP API: /grpc and /session become
// BuildKit connections by an upgrade. It cannot read image layouts, so base images are
// loaded into its image store first, under names that hold their digest.

// engineRepository is the repository of base images in an engine's store.
const engineRepository = "kiln-base"

// loadBases puts base images into the engine, unless they are there.
func (r *remote) loadBases(ctx context.Context, bases []base.Image) (baseContexts, error) {
	contexts := baseContexts{attrs: map[string]string{}}
	httpClient := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return r.dial(ctx) },
	}}
	defer httpClient.CloseIdleConnections()
	for _, img := range bases {
		tag, err := name.NewTag(engineRepository + ":" + img.Digest.Hex())
		if err != nil {
			return contexts, err
		}
		if err := loadBase(ctx, httpClient, img, tag); err != nil {
			return contexts, fmt.Errorf("load base image %s: %w", img.Ref, err)
		}
		contexts.attrs[contextAttr(img.Ref)] = "docker-image://" + tag.String()
	}
	return contexts, nil
}

func loadBase(ctx context.Context, c *http.Client, img base.Image, tag name.Tag) error {
	status, err := request(ctx, c, http.MethodGet, "/images/"+tag.String()+"/json", nil)
	if err != nil || status == http.StatusOK {
		return err
	}
	content, err := img.V1()
	if err != nil {
		return err
	}
	reader, writer := io.Pipe()
	go func() { writer.CloseWithError(tarball.Write(tag, content, writer)) }()
	defer reader.Close()
	status, err = request(ctx, c, http.MethodPost, "/images/load?quiet=1", reader)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("answered %d", status)
	}
	return err
}

func request(ctx context.Context, c *http.Client, method, path string, body io.Reader) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, body)
	if err != nil {
		return 0, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/x-tar")
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
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
