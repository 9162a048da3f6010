package sandboxd

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/kilnvm/kiln/internal/guestapi/filesystem/filesystemconnect"
	"github.com/kilnvm/kiln/internal/guestapi/process/processconnect"
)

const (
	// tokenHeader carries the access token that POST /init has set.
	tokenHeader = "X-Access-Token"
	// groupHeader names the group to run as, next to the user of the Authorization header,
	// whose format has no place for one.
	groupHeader = "X-Kiln-Group"
)

// authenticate lets a request pass that carries the access token, if one is set. Health is
// open; files and init check for themselves, because they also accept other proof.
func (s *Server) authenticate(next http.Handler) http.Handler {
	refusal := errorf(connect.CodeUnauthenticated, "the access token in %s is missing or wrong", tokenHeader)
	rpc := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case checksItself(r) || s.hasToken(r):
			next.ServeHTTP(w, r)
		case isRPC(r) && rpc.IsSupported(r):
			_ = rpc.Write(w, r, refusal) // the client has gone; nobody is left to tell
		default:
			writeError(w, refusal)
		}
	})
}

func isRPC(r *http.Request) bool {
	return strings.HasPrefix(r.URL.Path, "/"+processconnect.ProcessName+"/") ||
		strings.HasPrefix(r.URL.Path, "/"+filesystemconnect.FilesystemName+"/")
}

func checksItself(r *http.Request) bool {
	switch r.URL.Path {
	case "/health":
		return r.Method == http.MethodGet || r.Method == http.MethodHead
	case "/files":
		return r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodPost
	case "/init":
		return r.Method == http.MethodPost
	}
	return false
}

func (s *Server) hasToken(r *http.Request) bool {
	token := s.settings.get().token
	return token == "" || sameSecret(r.Header.Get(tokenHeader), token)
}

func sameSecret(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// authorizeFile accepts the token, or a signature over path, operation ("read" or "write")
// and user, all as they stand in the query.
func (s *Server) authorizeFile(r *http.Request, query url.Values, operation string) error {
	if s.hasToken(r) {
		return nil
	}
	given := query.Get("signature")
	if given == "" {
		return errorf(connect.CodeUnauthenticated, "the request has neither the access token nor a signature")
	}
	expiry := query.Get("signature_expiration")
	want := sign(query.Get("path"), operation, query.Get("username"), s.settings.get().token, expiry)
	if !sameSecret(given, want) {
		return errorf(connect.CodeUnauthenticated, "the signature is not valid for this path, operation and user")
	}
	if expiry == "" {
		return nil
	}
	seconds, err := strconv.ParseInt(expiry, 10, 64)
	if err != nil || time.Now().Unix() > seconds {
		return errorf(connect.CodeUnauthenticated, "the signature has expired")
	}
	return nil
}

// sign returns "v1_" and the unpadded base64 of SHA-256 over the parts joined by ":". The
// expiration, a Unix second, is left out when empty.
func sign(path, operation, user, token, expiration string) string {
	text := path + ":" + operation + ":" + user + ":" + token
	if expiration != "" {
		text += ":" + expiration
	}
	sum := sha256.Sum256([]byte(text))
	return "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// caller is the account that an RPC's Authorization header names (its password means
// nothing), or the default user.
func (s *Server) caller(h http.Header) (account, error) {
	request := http.Request{Header: h}
	user, _, _ := request.BasicAuth()
	if user == "" {
		return s.accountNamed("")
	}
	if group := h.Get(groupHeader); group != "" {
		user += ":" + group
	}
	return s.accountNamed(user)
}

// accountNamed finds an account; "" is the default user.
func (s *Server) accountNamed(user string) (account, error) {
	if user == "" {
		user = s.settings.get().user
	}
	return s.accounts.lookup(user)
}
