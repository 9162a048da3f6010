package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/client"
)

// buildFlags are the flags that create and build share.
type buildFlags struct {
	dockerfile, context, target string
	buildArgs, env, secrets     []string
	noCache, pull               bool
	metadata                    kiln.Metadata
	from                        sourceFlags
	egress                      egressFlags
	limits                      limitFlags
}

// textFlag is a flag that says one text of the metadata.
type textFlag struct {
	name  string
	dst   *string
	usage string
}

func (f *buildFlags) texts() []textFlag {
	m := &f.metadata
	return []textFlag{
		{"description", &m.Description, "what the template is, for people"},
		{"author", &m.Author, "who made it"},
		{"icon", &m.Icon, "word or address of a picture"},
		{"start-cmd", &m.StartCmd, "command that is started before the snapshot and keeps running"},
		{"ready-cmd", &m.ReadyCmd, "command that must succeed before the snapshot is taken"},
		{"post-restore", &m.PostRestore, "command that runs in every sandbox before it is handed out"},
		{"smoke", &m.Smoke, "command of 'kiln templates smoke'"},
		{"size", &m.DefaultSize, "default VM size of its sandboxes"},
		{"min-size", &m.MinSize, "smallest VM size of its sandboxes"},
		{"init", &m.Init, "systemd boots the image's own"},
	}
}

// checkGiven refuses a flag that takes nothing away although it looks so: what the metadata
// file says holds until a flag says something else.
func (f *buildFlags) checkGiven(flags *pflag.FlagSet) error {
	refuse := func(name, value string) error {
		if !flags.Changed(name) {
			return nil
		}
		return usageError{kiln.Errorf(kiln.CodeInvalid, "--%s %s says nothing", name, value).
			WithHint("leave it out; a flag cannot take away what kiln-template.toml says")}
	}
	var err error
	flags.Visit(func(flag *pflag.Flag) {
		if err == nil && !utf8.ValidString(flag.Value.String()) {
			err = usageError{kiln.Errorf(kiln.CodeInvalid, "--%s is not text in UTF-8", flag.Name)}
		}
	})
	if err != nil {
		return err
	}
	for _, t := range append(f.texts(), textFlag{name: "egress-mode", dst: &f.egress.mode}) {
		if *t.dst == "" {
			if err := refuse(t.name, `""`); err != nil {
				return err
			}
		}
	}
	for name, value := range map[string]int{
		"disk-size-mb": f.metadata.DiskMB, "bandwidth-mbps": f.limits.BandwidthMBps, "ops-per-sec": f.limits.OpsPerSec,
		"burst-mbps": f.limits.BurstMBps, "burst-ops": f.limits.BurstOps,
	} {
		if value < 1 {
			if err := refuse(name, strconv.Itoa(value)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *buildFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	f.addDockerfile(flags)
	f.addCache(flags)
	flags.StringVar(&f.target, "target", "", "stage of the Dockerfile to build")
	flags.StringArrayVar(&f.buildArgs, "build-arg", nil, "NAME=VALUE of an ARG, or NAME for the environment's value (repeatable)")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "NAME=VALUE for every command in its sandboxes (repeatable)")
	for _, t := range f.texts() {
		flags.StringVar(t.dst, t.name, "", t.usage)
	}
	flags.StringArrayVar(&f.metadata.Tags, "tag", nil, "word that it can be found by (repeatable)")
	flags.IntVar(&f.metadata.DiskMB, "disk-size-mb", 0, fmt.Sprintf("writable disk of its sandboxes in MiB (default %d)", kiln.DefaultDiskMB))
	f.from.add(flags)
	f.egress.add(cmd, "egress-")
	f.limits.add(flags)
}

func (f *buildFlags) addDockerfile(flags *pflag.FlagSet) {
	flags.StringVarP(&f.dockerfile, "dockerfile", "f", "", "the Dockerfile, or - for standard input (default CONTEXT/Dockerfile)")
}

func (f *buildFlags) addCache(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.secrets, "secret", nil, "id=ID,src=FILE or id=ID,env=NAME for RUN --mount=type=secret (repeatable)")
	flags.BoolVar(&f.noCache, "no-cache", false, "run every step again")
	flags.BoolVar(&f.pull, "pull", false, "ask for newer base images")
}

// request translates the flags.
func (f *buildFlags) request(a *app) (*client.CreateTemplate, error) {
	req := &client.CreateTemplate{
		Options:  api.BuildOptions{Target: f.target, NoCache: f.noCache, Pull: f.pull},
		Metadata: f.metadata,
	}
	req.Metadata.Limits = f.limits.DiskLimits
	var err error
	if req.Options.Args, err = pairs("--build-arg", f.buildArgs, a.lookupEnv); err != nil {
		return nil, err
	}
	if req.Metadata.Env, err = pairs("--env", f.env, nil); err != nil {
		return nil, err
	}
	if req.Options.Secrets, err = a.readSecrets(f.secrets); err != nil {
		return nil, err
	}
	for _, size := range []string{f.metadata.DefaultSize, f.metadata.MinSize} {
		if size == "" {
			continue
		}
		if _, err := kiln.SizeByName(size); err != nil {
			return nil, err
		}
	}
	egress, err := f.egress.change()
	if err != nil {
		return nil, err
	}
	if egress != nil {
		req.Metadata.Egress = egress.Policy()
	}
	return req, f.from.fill(a, f.dockerfile, req)
}

// pairs parses NAME=VALUE flags. With lookup a bare NAME takes its value from there, and
// is left out if there is none, as docker does.
func pairs(flag string, list []string, lookup func(string) (string, bool)) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(list))
	for _, item := range list {
		name, value, ok := strings.Cut(item, "=")
		if name == "" || !ok && lookup == nil {
			return nil, usageError{kiln.Errorf(kiln.CodeInvalid, "%s %q is not NAME=VALUE", flag, item)}
		}
		if !ok {
			if value, ok = lookup(name); !ok {
				continue
			}
		}
		out[name] = value
	}
	return out, nil
}

// readSecrets parses id=ID,src=FILE and id=ID,env=NAME.
func (a *app) readSecrets(list []string) (map[string][]byte, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := make(map[string][]byte, len(list))
	for _, item := range list {
		id, value, err := a.readSecret(item)
		if err != nil {
			return nil, err
		}
		out[id] = value
	}
	return out, nil
}

func (a *app) readSecret(item string) (id string, value []byte, err error) {
	bad := usageError{kiln.Errorf(kiln.CodeInvalid, "--secret %q is not id=ID,src=FILE or id=ID,env=NAME", item)}
	fields := map[string]string{}
	for _, part := range strings.Split(item, ",") {
		key, v, ok := strings.Cut(part, "=")
		if !ok || v == "" {
			return "", nil, bad
		}
		fields[key] = v
	}
	id = fields["id"]
	if id == "" {
		return "", nil, bad
	}
	file := fields["src"]
	if file == "" {
		file = fields["source"]
	}
	switch env := fields["env"]; {
	case file != "":
		value, err = os.ReadFile(file)
		if err != nil {
			return "", nil, kiln.Errorf(kiln.CodeInvalid, "secret %s: %w", id, err)
		}
	case env != "":
		text, ok := a.lookupEnv(env)
		if !ok {
			return "", nil, kiln.Errorf(kiln.CodeInvalid, "secret %s: the environment has no %s", id, env)
		}
		value = []byte(text)
	default:
		return "", nil, bad
	}
	return id, value, nil
}
