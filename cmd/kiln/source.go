package main

import (
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/client"
)

// sourceFlags name a source that the server fetches.
type sourceFlags struct {
	repo, ref, dir, image string
	access                gitAccess
}

func (f *sourceFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.repo, "repo", "", "git repository to build from: https://… or git@host:path")
	flags.StringVar(&f.ref, "ref", "", "branch, tag or commit of --repo (default its HEAD)")
	flags.StringVar(&f.dir, "dir", "", "folder of --repo with the Dockerfile (default its root)")
	flags.StringVar(&f.image, "image", "", "existing image that becomes the template, without a Dockerfile")
	f.access.add(flags)
}

// remote reports whether the flags name a source, and refuses more than one. local says
// that a folder is named beside them.
func (f *sourceFlags) remote(local bool) (bool, error) {
	given := 0
	for _, yes := range []bool{local, f.repo != "", f.image != ""} {
		if yes {
			given++
		}
	}
	switch {
	case given > 1:
		return false, usageError{kiln.Errorf(kiln.CodeInvalid, "more than one source is given").WithHint("use one of a folder, --repo and --image")}
	case f.repo == "" && (f.ref != "" || f.dir != ""):
		return false, usageError{kiln.Errorf(kiln.CodeInvalid, "--ref and --dir belong to --repo")}
	case f.repo == "" && f.access != (gitAccess{}):
		return false, usageError{kiln.Errorf(kiln.CodeInvalid, "--git-token-file, --git-ssh-key and --git-known-hosts belong to --repo")}
	}
	return f.repo != "" || f.image != "", nil
}

// fill adds the source to a request.
func (f *sourceFlags) fill(a *app, dockerfile string, req *client.CreateTemplate) error {
	if f.image != "" {
		if dockerfile != "" {
			return usageError{kiln.Errorf(kiln.CodeInvalid, "--image needs no Dockerfile").WithHint("leave --dockerfile out, or begin it with FROM %s", f.image)}
		}
		if o := req.Options; o.Target != "" || len(o.Args) > 0 || len(o.Secrets) > 0 {
			return usageError{kiln.Errorf(kiln.CodeInvalid, "--target, --build-arg and --secret are for a Dockerfile; --image has none")}
		}
		req.Image = f.image
	}
	if f.repo == "" {
		return nil
	}
	if dockerfile == "-" {
		return usageError{kiln.Errorf(kiln.CodeInvalid, "the Dockerfile of --repo is one of its files and cannot be read from standard input")}
	}
	req.Git = &kiln.GitSource{URL: f.repo, Ref: f.ref, Dir: f.dir}
	req.Options.Dockerfile = dockerfile // a path inside the repository's folder
	var err error
	req.GitCredentials, err = f.access.credentials(a)
	return err
}

// gitAccess names what opens a private repository.
type gitAccess struct{ tokenFile, sshKey, knownHosts string }

func (g *gitAccess) add(flags *pflag.FlagSet) {
	flags.StringVar(&g.tokenFile, "git-token-file", "", "file with an access token for a private https repository (default $KILN_GIT_TOKEN)")
	flags.StringVar(&g.sshKey, "git-ssh-key", "", "file with a private key, without passphrase, for an ssh repository")
	flags.StringVar(&g.knownHosts, "git-known-hosts", "", "known_hosts file with the key of the ssh repository's host")
}

func (g *gitAccess) credentials(a *app) (kiln.GitCredentials, error) {
	var cred kiln.GitCredentials
	for _, f := range []struct {
		flag, path string
		dst        *string
	}{{"--git-token-file", g.tokenFile, &cred.Token}, {"--git-ssh-key", g.sshKey, &cred.SSHKey}, {"--git-known-hosts", g.knownHosts, &cred.KnownHosts}} {
		if f.path == "" {
			continue
		}
		content, err := os.ReadFile(f.path)
		if err != nil {
			return cred, kiln.Errorf(kiln.CodeInvalid, "%s: %w", f.flag, err)
		}
		*f.dst = strings.TrimSpace(string(content))
	}
	if cred.Token == "" && cred.SSHKey == "" {
		cred.Token, _ = a.lookupEnv("KILN_GIT_TOKEN")
	}
	return cred, nil
}
