package git

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/hostcmd"
	"github.com/kilnvm/kiln/internal/source"
)

// Options bound what a repository may make the server do.
type Options struct {
	// Hosts are the hosts, without port, that may be asked. Empty means any.
	Hosts []string
	// MaxBytes bounds what one fetch stores; 0 means 4 GiB.
	MaxBytes int64
	// Limits bound the context.
	Limits source.Limits
}

// maxMemory bounds the memory of one git process in bytes.
const maxMemory = 2 << 30

// Remote is one repository that can be asked with one set of credentials.
type Remote struct {
	src    kiln.GitSource
	opts   Options
	access *access
	dir    string // private folder, removed by Close
	repo   string // bare repository below it; "" before the first fetch
}

// Open checks everything that can be checked without the network. tempDir is an existing
// folder of the caller's to work in. Close the remote to forget the credentials.
func Open(src kiln.GitSource, cred kiln.GitCredentials, tempDir string, opts Options) (*Remote, error) {
	src, err := Check(src)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(src.URL)
	if err != nil {
		return nil, fmt.Errorf("git URL: %w", err)
	}
	if len(opts.Hosts) > 0 && !slices.Contains(opts.Hosts, u.Hostname()) {
		return nil, kiln.Errorf(kiln.CodeForbidden, "this server fetches from %s only, not from %s", strings.Join(opts.Hosts, ", "), u.Hostname()).
			WithHint("the setting is build.git_hosts")
	}
	if err := checkCredentials(u, cred); err != nil {
		return nil, err
	}
	if opts.MaxBytes == 0 {
		opts.MaxBytes = 4 << 30
	}
	a, err := newAccess(u, cred)
	if err != nil {
		return nil, err
	}
	return &Remote{src: src, opts: opts, access: a, dir: tempDir}, nil
}

// Close forgets the credentials.
func (r *Remote) Close() { r.access.close() }

// Source returns what the remote was opened with, in its canonical form.
func (r *Remote) Source() kiln.GitSource { return r.src }

// Resolve returns the commit that the ref means now.
func (r *Remote) Resolve(ctx context.Context) (string, error) {
	if commitName.MatchString(r.src.Ref) {
		return r.src.Ref, nil
	}
	patterns := []string{"HEAD"}
	if r.src.Ref != "" {
		// A tag's commit comes as NAME^{}; the tag's own object is not what is wanted.
		patterns = []string{"refs/heads/" + r.src.Ref, "refs/tags/" + r.src.Ref + "^{}", "refs/tags/" + r.src.Ref, r.src.Ref}
	}
	out, err := r.git(ctx, append([]string{"ls-remote", "--quiet", "--", r.src.URL}, patterns...)...).Output(ctx)
	if err != nil {
		return "", r.unreachable(ctx, err)
	}
	commits := map[string]string{}
	for line := range strings.Lines(string(out)) {
		commit, name, ok := strings.Cut(strings.TrimSpace(line), "\t")
		if ok && commitName.MatchString(commit) {
			commits[name] = commit
		}
	}
	for _, p := range patterns {
		if commit, ok := commits[p]; ok {
			return commit, nil
		}
	}
	if r.src.Ref == "" {
		return "", kiln.Errorf(kiln.CodeInvalid, "git repository %s is empty", r.src.URL)
	}
	return "", kiln.Errorf(kiln.CodeInvalid, "git repository %s has no branch or tag %q", r.src.URL, r.src.Ref)
}

// Fetch gets the commit, which Resolve returned.
func (r *Remote) Fetch(ctx context.Context, commit string) error {
	format := "sha1"
	if len(commit) == 64 {
		format = "sha256"
	}
	repo := filepath.Join(r.dir, "repository")
	if err := r.git(ctx, "init", "--quiet", "--bare", "--template=", "--object-format="+format, repo).Run(ctx); err != nil {
		return r.fault(ctx, err)
	}
	r.repo = repo
	fetch := []string{"fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head", "--no-auto-maintenance", "--depth=1", "--", r.src.URL}
	err := r.git(ctx, append(fetch, commit)...).Run(ctx)
	if err == nil {
		return nil
	}
	// Servers may refuse a commit that no branch or tag points at; then all of them are
	// fetched in the hope that it is behind one.
	if commit == r.src.Ref && ctx.Err() == nil {
		whole := slices.DeleteFunc(slices.Clone(fetch), func(a string) bool { return a == "--depth=1" })
		if r.git(ctx, append(whole, "refs/heads/*:refs/heads/*", "refs/tags/*:refs/tags/*")...).Run(ctx) == nil &&
			r.git(ctx, "cat-file", "-e", commit+"^{commit}").Run(ctx) == nil {
			return nil
		}
	}
	return r.unreachable(ctx, err)
}

// git returns a git command. Its arguments are ours or have passed Check.
func (r *Remote) git(_ context.Context, args ...string) hostcmd.Command {
	limits := []string{"--fsize=" + strconv.FormatInt(r.opts.MaxBytes, 10), "--data=" + strconv.FormatInt(maxMemory, 10), "--core=0", "git"}
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + r.dir, "LC_ALL=C",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_ATTR_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
		"GIT_ALLOW_PROTOCOL=https:http:ssh", "GIT_OPTIONAL_LOCKS=0", "GIT_CEILING_DIRECTORIES=" + r.dir,
	}
	for _, name := range []string{"SSL_CERT_FILE", "SSL_CERT_DIR", "https_proxy", "http_proxy", "no_proxy", "HTTPS_PROXY", "NO_PROXY"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	if file := os.Getenv("SSL_CERT_FILE"); file != "" {
		env = append(env, "GIT_SSL_CAINFO="+file)
	}
	if r.repo != "" {
		env = append(env, "GIT_DIR="+r.repo)
	}
	return hostcmd.Command{Name: "prlimit", Args: append(limits, args...), Dir: r.dir, Env: append(env, r.access.env...), OnlyEnv: true}
}

// unreachable explains a failure of the repository's side. git has one exit code for all
// of them, so its own words are passed on.
func (r *Remote) unreachable(ctx context.Context, err error) error {
	return r.describe(ctx, err, kiln.CodeUnavailable, "check the URL; a private repository needs --git-token-file or --git-ssh-key, and ssh the host's key in --git-known-hosts")
}

func (r *Remote) fault(ctx context.Context, err error) error {
	return r.describe(ctx, err, kiln.CodeInternal, "")
}

func (r *Remote) describe(ctx context.Context, err error, code kiln.ErrorCode, hint string) error {
	var failed *hostcmd.Error
	switch {
	case ctx.Err() != nil:
		return kiln.Errorf(kiln.CodeTimeout, "git repository %s: stopped: %w", r.src.URL, context.Cause(ctx))
	case !errors.As(err, &failed):
		return err
	}
	said := strings.ReplaceAll(strings.TrimSpace(failed.Stderr), "\n", "; ")
	if said == "" {
		said = failed.Err.Error() // killed by a limit, perhaps
	}
	e := &kiln.Error{Code: code, Message: fmt.Sprintf("git repository %s: %s", r.src.URL, said), Err: err}
	if hint != "" {
		e = e.WithHint("%s", hint)
	}
	return e
}

// treeEntry is one line of ls-tree.
type treeEntry struct {
	mode, kind, object, path string
	size                     int64
}

// list returns the members of the context's folder at a commit, in git's order.
func (r *Remote) list(ctx context.Context, commit string) ([]treeEntry, error) {
	tree := commit + "^{tree}"
	if r.src.Dir != "" {
		tree = commit + ":" + r.src.Dir
	}
	out, err := r.git(ctx, "ls-tree", "-r", "-l", "-z", "--full-tree", tree).Output(ctx)
	if err != nil {
		if hostcmd.ExitCode(err) == 128 && r.src.Dir != "" {
			return nil, kiln.Errorf(kiln.CodeInvalid, "git repository %s has no folder %q at commit %.12s", r.src.URL, r.src.Dir, commit)
		}
		return nil, r.fault(ctx, err)
	}
	var list []treeEntry
	for _, line := range strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		if line == "" {
			continue
		}
		meta, path, ok := strings.Cut(line, "\t")
		f := strings.Fields(meta)
		if !ok || len(f) != 4 {
			return nil, fmt.Errorf("git ls-tree printed %q", line)
		}
		e := treeEntry{mode: f[0], kind: f[1], object: f[2], path: path}
		if e.kind == "blob" {
			if e.size, err = strconv.ParseInt(f[3], 10, 64); err != nil {
				return nil, fmt.Errorf("git ls-tree printed %q", line)
			}
		}
		list = append(list, e)
	}
	return list, nil
}

// blobs runs git cat-file --batch over the objects and passes each content to visit.
func (r *Remote) blobs(ctx context.Context, objects []treeEntry, visit func(treeEntry, io.Reader) error) error {
	if len(objects) == 0 {
		return nil
	}
	var names strings.Builder
	for _, e := range objects {
		names.WriteString(e.object + "\n")
	}
	reader, writer := io.Pipe()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := r.git(ctx, "cat-file", "--batch", "--buffer")
	cmd.In, cmd.Out = strings.NewReader(names.String()), writer
	done := make(chan error, 1)
	go func() {
		err := cmd.Run(ctx)
		writer.CloseWithError(err)
		done <- err
	}()
	err := readBatch(bufio.NewReaderSize(reader, 256<<10), objects, visit)
	if err != nil {
		cancel()
	}
	reader.Close()
	if runErr := <-done; err == nil && runErr != nil {
		err = r.fault(ctx, runErr)
	}
	return err
}

func readBatch(in *bufio.Reader, objects []treeEntry, visit func(treeEntry, io.Reader) error) error {
	for _, e := range objects {
		line, err := in.ReadString('\n')
		if err != nil {
			return fmt.Errorf("git cat-file: %w", err)
		}
		if want := fmt.Sprintf("%s blob %d\n", e.object, e.size); line != want {
			return fmt.Errorf("git cat-file printed %q, want %q", line, want)
		}
		content := io.LimitReader(in, e.size)
		if err := visit(e, content); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, content); err != nil {
			return fmt.Errorf("git cat-file: %w", err)
		}
		if _, err := in.Discard(1); err != nil { // the newline after the content
			return fmt.Errorf("git cat-file: %w", err)
		}
	}
	return nil
}
