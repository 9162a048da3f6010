package git

import (
	"io/fs"
	"net"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/kilnvm/kiln"
)

var (
	scpLike    = regexp.MustCompile(`^([A-Za-z0-9._-]+)@([A-Za-z0-9.-]+):([^/].*)$`) // git@host:path
	commitName = regexp.MustCompile(`^(?:[0-9a-f]{40}|[0-9a-f]{64})$`)
	// A subset of what git-check-ref-format(1) allows: no character that has a meaning in
	// a revision, a refspec or a shell.
	refName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_./+#@=,-]*$`)
)

// Check returns src in its one canonical form, or says what is wrong with it. What it lets
// pass cannot be taken for an option or another transport by git or ssh.
func Check(src kiln.GitSource) (kiln.GitSource, error) {
	if m := scpLike.FindStringSubmatch(src.URL); m != nil {
		src.URL = "ssh://" + m[1] + "@" + m[2] + "/" + m[3]
	}
	u, err := checkURL(src.URL)
	if err != nil {
		return src, err
	}
	src.URL = u.String()
	if src.Ref != "" && (!refName.MatchString(src.Ref) || strings.Contains(src.Ref, "..") || strings.Contains(src.Ref, "@{") ||
		strings.HasSuffix(src.Ref, ".lock") || strings.HasSuffix(src.Ref, "/") || strings.Contains(src.Ref, "//")) {
		return src, kiln.Errorf(kiln.CodeInvalid, "git ref %q is not allowed", src.Ref).WithHint("give a branch, a tag or a full commit")
	}
	src.Dir = strings.TrimSuffix(path.Clean(strings.Trim(src.Dir, "/")+"/"), "/")
	if src.Dir == "." {
		src.Dir = ""
	}
	if src.Dir != "" && (!fs.ValidPath(src.Dir) || strings.ContainsAny(src.Dir, "\x00\n")) {
		return src, kiln.Errorf(kiln.CodeInvalid, "folder %q leads out of the repository", src.Dir)
	}
	return src, nil
}

func checkURL(text string) (*url.URL, error) {
	refuse := func(why, hint string) (*url.URL, error) {
		e := kiln.Errorf(kiln.CodeInvalid, "git URL %q %s", shown(text), why)
		if hint != "" {
			e = e.WithHint("%s", hint)
		}
		return nil, e
	}
	u, err := url.Parse(text)
	if err != nil || strings.ContainsAny(text, " \t\r\n\x00") {
		return refuse("cannot be understood", "for example https://host/owner/name.git or git@host:owner/name.git")
	}
	if _, has := u.User.Password(); has {
		return refuse("contains a password", "give a token apart from the URL, so that it is kept out of logs and the database: --git-token-file FILE")
	}
	switch {
	case !slices.Contains([]string{"https", "http", "ssh"}, u.Scheme):
		return refuse("has a transport that is not allowed", "allowed are https://, http:// and ssh:// (git@host:path)")
	case u.Hostname() == "" || strings.HasPrefix(u.Hostname(), "-"):
		return refuse("names no host", "")
	case u.User != nil && strings.HasPrefix(u.User.Username(), "-"):
		return refuse("has a user name that is not allowed", "")
	case strings.Trim(u.Path, "/") == "" || strings.HasPrefix(strings.TrimLeft(u.Path, "/"), "-"):
		return refuse("names no repository", "")
	case u.RawQuery != "" || u.Fragment != "":
		return refuse("has a query or a fragment", "give the branch with --ref and the folder with --dir")
	}
	u.Host = strings.ToLower(u.Host)
	u.Path = "/" + strings.Trim(u.Path, "/")
	u.RawPath = ""
	return u, nil
}

// shown is a URL without what may be a secret, for messages: a user name may be one, except
// that of ssh, and so may a query.
func shown(text string) string {
	if at := strings.LastIndex(text, "@"); at >= 0 {
		before, user, found := strings.Cut(text[:at], "://")
		scheme := before + "://"
		if !found {
			scheme, user = "", before
		}
		if scheme != "" && scheme != "ssh://" || strings.Contains(user, ":") {
			text = scheme + "…" + text[at:]
		}
	}
	if i := strings.IndexAny(text, "?#"); i >= 0 {
		text = text[:i+1] + "…"
	}
	return text
}

// checkCredentials refuses to send a secret where others can read it, secrets that the
// transport has no use for, and what is probably one in the wrong place.
func checkCredentials(u *url.URL, cred kiln.GitCredentials) error {
	if u.User != nil && u.Scheme != "ssh" && cred.Token == "" {
		// Alone it opens nothing, unless it is a token itself.
		return kiln.Errorf(kiln.CodeInvalid, "git URL %q contains a user name, and no token is given", shown(u.String())).
			WithHint("give a token apart from the URL, so that it is kept out of logs and the database: --git-token-file FILE")
	}
	if cred.Token != "" {
		if u.Scheme == "ssh" {
			return kiln.Errorf(kiln.CodeInvalid, "a git token is of no use for %s", u).WithHint("ssh takes a key")
		}
		if u.Scheme == "http" && !loopback(u.Hostname()) {
			return kiln.Errorf(kiln.CodeInvalid, "a git token would be sent to %s without encryption", u.Host).WithHint("use https")
		}
		if strings.ContainsAny(cred.Token, "\r\n\x00") {
			return kiln.Errorf(kiln.CodeInvalid, "the git token has more than one line")
		}
	}
	if (cred.SSHKey != "" || cred.KnownHosts != "") && u.Scheme != "ssh" {
		return kiln.Errorf(kiln.CodeInvalid, "an SSH key is of no use for %s", u).WithHint("%s takes a token", u.Scheme)
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
