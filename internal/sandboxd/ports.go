package sandboxd

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"syscall"
)

// Requests for another port than the daemon's own name it in this header.
const (
	portHeader = "E2b-Sandbox-Port"
	ownPort    = 49983
)

// forwardPorts passes requests for a service in the sandbox on to it, so that one channel
// to the host is enough for all of them and a service may listen on loopback only. Who may
// ask is decided by the host, and by the service.
func (s *Server) forwardPorts(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		named := r.Header.Get(portHeader)
		if named == "" || named == strconv.Itoa(ownPort) {
			next.ServeHTTP(w, r)
			return
		}
		port, err := strconv.ParseUint(named, 10, 16)
		if err != nil || port == 0 {
			portError(w, http.StatusBadRequest, named, "there is no such port")
			return
		}
		// A service may begin to answer before it has read the whole request.
		_ = http.NewResponseController(w).EnableFullDuplex()
		s.forwardTo(int(port)).ServeHTTP(w, r)
	})
}

func (s *Server) forwardTo(port int) http.Handler {
	number := strconv.Itoa(port)
	return &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = "http", net.JoinHostPort("127.0.0.1", number)
			p.Out.Host = p.In.Host
			p.Out.Header.Del(portHeader)
			for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
				p.Out.Header[name] = p.In.Header[name] // the host's proxy says how the service was reached
			}
		},
		FlushInterval: -1,
		ErrorLog:      slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			s.log.Debug("port", "port", port, "err", err)
			message := "the service at this port of the sandbox ended the connection without an answer"
			if errors.Is(err, syscall.ECONNREFUSED) {
				message = "the sandbox runs, but nothing listens on this port"
			}
			portError(w, http.StatusBadGateway, number, message)
		},
	}
}

// portError answers in the form that E2B's clients know.
func portError(w http.ResponseWriter, status int, port, message string) {
	writeJSON(w, status, map[string]any{"message": message, "port": port, "code": status})
}
