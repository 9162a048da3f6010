package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
)

func (a *app) sandboxPort() *cobra.Command {
	var listen string
	var byPath bool
	cmd := &cobra.Command{
		Use: "port ID PORT", Short: "Print the URL of a service in a sandbox, or forward a local port to it", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			number, err := strconv.ParseUint(args[1], 10, 16)
			if err != nil || number == 0 {
				return usageError{kiln.Errorf(kiln.CodeInvalid, "port %q is not between 1 and 65535", args[1])}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			port, err := c.Port(cmd.Context(), args[0], int(number))
			if err != nil {
				return err
			}
			server, err := url.Parse(c.Server())
			if err != nil {
				return err
			}
			if listen != "" {
				return a.forward(cmd.Context(), listen, server, port)
			}
			return a.printPort(server, port, byPath)
		},
	}
	cmd.Flags().StringVarP(&listen, "listen", "l", "", "forward this local address, like 127.0.0.1:8080, until interrupted")
	cmd.Flags().BoolVar(&byPath, "path", false, "print the URL that needs no host name of its own, but a token")
	return cmd
}

// portURL is the server's URL with the host that names the port.
func portURL(server *url.URL, port *api.Port) string {
	u := url.URL{Scheme: server.Scheme, Host: port.Host, Path: "/"}
	if p := server.Port(); p != "" {
		u.Host = net.JoinHostPort(port.Host, p)
	}
	return u.String()
}

func (a *app) printPort(server *url.URL, port *api.Port, byPath bool) error {
	u, below := portURL(server, port), server.JoinPath(port.Path).String()
	if a.json() {
		return a.printJSON(map[string]any{"port": port.Port, "url": u, "headers": port.Headers, "path_url": below})
	}
	if byPath {
		u = below
	}
	_, err := fmt.Fprintln(a.stdout, u)
	return err
}

// forward serves a local address until ctx ends. Names are no matter there: the headers
// say which sandbox is meant.
func (a *app) forward(ctx context.Context, listen string, server *url.URL, port *api.Port) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return usageError{kiln.Errorf(kiln.CodeInvalid, "--listen: %w", err)}
	}
	proxy := &httputil.ReverseProxy{
		FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(server)
			r.Out.Host = r.In.Host
			for name, value := range port.Headers {
				r.Out.Header.Set(name, value)
			}
		},
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex() // as a service may begin to answer at once
		proxy.ServeHTTP(w, r)
	})
	web := &http.Server{Handler: handler, ReadHeaderTimeout: 30 * time.Second}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		_ = web.Close() // nothing is worth waiting for
	}()
	fmt.Fprintf(a.progress(), "forwarding http://%s to port %d, until interrupted\n", l.Addr(), port.Port)
	err = web.Serve(l)
	if errors.Is(err, http.ErrServerClosed) {
		<-stopped
		return nil
	}
	return err
}
