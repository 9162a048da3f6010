package proxy

import (
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
)

// PathPrefix begins paths that name a sandbox: /v1/sandboxes/ID/ports/PORT/ and what the
// service is asked for. Without the last slash they are the API's.
const PathPrefix = "/v1/sandboxes/"

// target is what a request names.
type target struct {
	id, port string
	// prefix is what is taken off the path, without a final slash; "" unless the path
	// names the sandbox.
	prefix string
}

// targetOf returns which sandbox and port r names, and whether it names one at all.
func (h *handler) targetOf(r *http.Request) (target, bool) {
	id, port := r.Header.Get(HeaderSandboxID), r.Header.Get(HeaderSandboxPort)
	if id != "" || port != "" {
		return target{id: id, port: port}, true
	}
	if t, ok := targetOfHost(r.Host, h.Domain); ok {
		return t, true
	}
	return targetOfPath(r.URL)
}

func targetOfHost(host, domain string) (target, bool) {
	if domain == "" {
		return target{}, false
	}
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	label, ok := strings.CutSuffix(strings.ToLower(host), "."+strings.ToLower(domain))
	if !ok {
		return target{}, false
	}
	port, id, ok := strings.Cut(label, "-")
	return target{id: id, port: port}, ok
}

func targetOfPath(u *url.URL) (target, bool) {
	rest, ok := strings.CutPrefix(u.EscapedPath(), PathPrefix)
	if !ok {
		return target{}, false
	}
	id, rest, _ := strings.Cut(rest, "/")
	rest, ok = strings.CutPrefix(rest, "ports/")
	port, _, slash := strings.Cut(rest, "/")
	t := target{id: id, port: port, prefix: PathPrefix + id + "/ports/" + port}
	// An escape in what names the sandbox is nobody's mistake.
	return t, ok && slash && strings.HasPrefix(u.Path, t.prefix+"/")
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

// strip returns r as the service is to see it.
func (t target) strip(r *http.Request) *http.Request {
	if t.prefix == "" {
		return r
	}
	stripped, u := *r, *r.URL
	u.Path = strings.TrimPrefix(u.Path, t.prefix)
	u.RawPath = strings.TrimPrefix(u.RawPath, t.prefix)
	stripped.URL = &u
	return &stripped
}

// Headers in which a service learns what its client asked for.
const (
	headerForwardedPrefix = "X-Forwarded-Prefix"
	headerForwardedProto  = "X-Forwarded-Proto"
)

// forwarded tells the service how it was reached.
func (t target) forwarded(p *httputil.ProxyRequest) {
	p.SetXForwarded()
	if proto := p.In.Header.Get(headerForwardedProto); proto == "http" || proto == "https" {
		p.Out.Header.Set(headerForwardedProto, proto) // of a proxy before this one
	}
	p.Out.Header.Del(headerForwardedPrefix)
	if t.prefix != "" {
		p.Out.Header.Set(headerForwardedPrefix, t.prefix)
	}
}

// isolated is added to what is reached by path: a browser gives it an origin of its own, so
// that its scripts can do nothing in the name of the API's origin.
const isolated = "sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts"

// confine keeps an answer from having effects beyond its own service. Cookies are never for
// a parent domain, which sandboxes share; by path, they and redirections stay below it.
func (t target) confine(resp *http.Response, host string) {
	for i, c := range resp.Header["Set-Cookie"] {
		resp.Header["Set-Cookie"][i] = t.confineCookie(c)
	}
	if t.prefix == "" {
		return
	}
	for _, ofTheWholeOrigin := range []string{"Clear-Site-Data", "Service-Worker-Allowed", "Strict-Transport-Security", "Alt-Svc"} {
		resp.Header.Del(ofTheWholeOrigin)
	}
	resp.Header.Add("Content-Security-Policy", isolated)
	if location := resp.Header.Get("Location"); location != "" {
		resp.Header.Set("Location", t.below(location, host))
	}
}

func (t target) confineCookie(cookie string) string {
	var kept []string
	for i, attribute := range strings.Split(cookie, ";") {
		name, value, _ := strings.Cut(attribute, "=")
		value = strings.TrimSpace(value)
		switch name = strings.TrimSpace(name); {
		case i > 0 && strings.EqualFold(name, "Domain"):
			continue
		case i > 0 && t.prefix != "" && strings.EqualFold(name, "Path") && strings.HasPrefix(value, "/"):
			attribute = " " + name + "=" + t.prefix + value
		}
		kept = append(kept, attribute)
	}
	return strings.Join(kept, ";")
}

// below returns a location on the service's own host with the prefix, unless the service
// has put it there itself.
func (t target) below(location, host string) string {
	u, err := url.Parse(location)
	if err != nil || u.Opaque != "" || u.Host != "" && u.Host != host || !strings.HasPrefix(u.Path, "/") {
		return location
	}
	if strings.HasPrefix(u.Path+"/", t.prefix+"/") {
		return location
	}
	if u.RawPath != "" {
		u.RawPath = t.prefix + u.RawPath
	}
	u.Path = t.prefix + u.Path
	return u.String()
}
