package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/client"
	"github.com/kilnvm/kiln/internal/source"
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

func (a *app) templatesCreate() *cobra.Command {
	var f buildFlags
	var wait bool
	cmd := &cobra.Command{
		Use:   "create NAME --dockerfile FILE | --repo URL | --image IMAGE",
		Short: "Create a template from a Dockerfile, a git repository or an image and return at once",
		Long: `Create a template from a Dockerfile, a git repository or an existing image and return
at once; --wait shows the build and waits for its end.

The Dockerfile's folder is the build context if the Dockerfile copies files from it or a
kiln-template.toml lies beside it; .dockerignore is honoured. --context names another.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.checkGiven(cmd.Flags()); err != nil {
				return err
			}
			remote, err := f.from.remote(f.context != "")
			if err != nil {
				return err
			}
			var input source.Input
			if !remote {
				if input, err = a.createInput(f); err != nil {
					return err
				}
			}
			return a.create(cmd.Context(), args[0], input, f, false, wait)
		},
	}
	f.add(cmd)
	a.addProgress(cmd)
	cmd.Flags().StringVar(&f.context, "context", "", "folder that the Dockerfile may copy from")
	cmd.Flags().BoolVar(&wait, "wait", false, "show the build and wait for its end")
	return cmd
}

func (a *app) templatesBuild() *cobra.Command {
	var f buildFlags
	var builtIn string
	var detach bool
	cmd := &cobra.Command{
		Use:   "build [NAME] DIR | NAME --repo URL | NAME --image IMAGE | --builtin NAME",
		Short: "Build a template from a folder with a Dockerfile, a git repository or an image, and wait",
		Long: `Build a template from a folder with a Dockerfile, a git repository or an existing image,
show the build and wait for its end. If the template exists, its next version is built;
until that is ready the old one serves. Interrupting the command cancels the build.

Without NAME the one in DIR's kiln-template.toml counts.

--builtin builds a built-in template now rather than on its first use. The server's operator
builds it again with --no-cache or --pull.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if builtIn != "" && len(args) > 0 {
				return fmt.Errorf("--builtin %s names the template: it takes no NAME and no DIR", builtIn)
			}
			if builtIn != "" {
				return nil
			}
			return cobra.RangeArgs(1, 2)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if builtIn != "" {
				if err := onlyBuiltIn(cmd.LocalNonPersistentFlags(), builtIn); err != nil {
					return err
				}
				return a.buildBuiltIn(cmd.Context(), builtIn, api.BuiltInRequest{NoCache: f.noCache, Pull: f.pull}, !detach)
			}
			if err := f.checkGiven(cmd.Flags()); err != nil {
				return err
			}
			remote, err := f.from.remote(len(args) == 2)
			if err != nil {
				return err
			}
			var in source.Input
			if !remote {
				if len(args) == 1 && isLocalFolder(args[0]) {
					args = []string{"", args[0]} // the metadata file has the name
				}
				if len(args) < 2 {
					return usageError{kiln.Errorf(kiln.CodeInvalid, "no source given").WithHint("name a folder with a Dockerfile, or use --repo or --image")}
				}
				if args[1] == "-" {
					return usageError{kiln.Errorf(kiln.CodeInvalid, "a build context cannot be read from standard input").
						WithHint("name a folder; a Dockerfile alone can be: kiln templates create NAME --dockerfile -")}
				}
				if in, err = a.input(f); err != nil {
					return err
				}
				in.Dir = args[1]
			}
			return a.create(cmd.Context(), args[0], in, f, true, !detach)
		},
	}
	f.add(cmd)
	a.addProgress(cmd)
	cmd.Flags().StringVar(&builtIn, "builtin", "", "name of a built-in template")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "return at once")
	return cmd
}

func isLocalFolder(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

// onlyBuiltIn refuses flags that say how to build another source.
func onlyBuiltIn(flags *pflag.FlagSet, name string) error {
	var err error
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed && !slices.Contains([]string{"builtin", "detach", "progress", "no-cache", "pull"}, f.Name) {
			err = usageError{kiln.Errorf(kiln.CodeInvalid, "--builtin %s takes no --%s: its recipe is Kiln's own", name, f.Name)}
		}
	})
	return err
}

// input is the Dockerfile that the flags name.
func (a *app) input(f buildFlags) (source.Input, error) {
	if f.dockerfile != "-" {
		return source.Input{Dockerfile: f.dockerfile}, nil
	}
	content, err := io.ReadAll(a.stdin)
	if err != nil {
		return source.Input{}, fmt.Errorf("read the Dockerfile from standard input: %w", err)
	}
	if len(content) == 0 {
		return source.Input{}, kiln.Errorf(kiln.CodeInvalid, "standard input holds no Dockerfile")
	}
	return source.Input{Content: content}, nil
}

// createInput decides what the context of `create` is.
func (a *app) createInput(f buildFlags) (source.Input, error) {
	in, err := a.input(f)
	if err != nil {
		return in, err
	}
	if in.Dir = f.context; in.Dir != "" || in.Content != nil {
		return in, nil
	}
	if in.Dockerfile == "" {
		return in, usageError{kiln.Errorf(kiln.CodeInvalid, "no Dockerfile given").WithHint("use --dockerfile FILE, or --context DIR with a Dockerfile in it")}
	}
	dir := filepath.Dir(in.Dockerfile)
	for _, name := range kiln.MetadataFiles() {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			in.Dir = dir
			return in, nil
		}
	}
	file, err := os.Open(in.Dockerfile)
	if err != nil {
		return in, nil // Pack says what is wrong with it
	}
	defer file.Close()
	if copiesFromContext(file) {
		in.Dir = dir
	}
	return in, nil
}

// copiesFromContext reports whether a Dockerfile has an instruction that reads files of
// its build context. A file that cannot be parsed has none; the build reports it.
func copiesFromContext(dockerfile io.Reader) bool {
	parsed, err := parser.Parse(dockerfile)
	if err != nil {
		return false
	}
	stages, _, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		return false
	}
	for _, stage := range stages {
		if slices.ContainsFunc(stage.Commands, readsContext) {
			return true
		}
	}
	return false
}

func readsContext(cmd instructions.Command) bool {
	switch c := cmd.(type) {
	case *instructions.CopyCommand:
		return c.From == "" && len(c.SourcePaths) > 0
	case *instructions.AddCommand:
		return slices.ContainsFunc(c.SourcePaths, func(p string) bool { return !strings.Contains(p, "://") && !strings.HasPrefix(p, "git@") })
	case *instructions.RunCommand:
		// Until it is expanded a mount has neither type nor source.
		if c.Expand(func(word string) (string, error) { return word, nil }) != nil {
			return true
		}
		return slices.ContainsFunc(instructions.GetMounts(c), func(m *instructions.Mount) bool {
			return m.Type == instructions.MountTypeBind && m.From == ""
		})
	case *instructions.OnbuildCommand: // runs in the stages that begin with this one
		return copiesFromContext(strings.NewReader("FROM scratch\n" + c.Expression))
	}
	return false
}

// create sends the context and, if told to, follows the build.
func (a *app) create(ctx context.Context, name string, in source.Input, f buildFlags, replace, wait bool) error {
	req, err := f.request(a)
	if err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	req.Name, req.Replace = name, replace
	return a.send(ctx, c, in, req, wait)
}

// send sends a request and, unless the server fetches it, the context.
func (a *app) send(ctx context.Context, c *client.Client, in source.Input, req *client.CreateTemplate, wait bool) error {
	if req.Git == nil && req.Image == "" {
		archive, err := packContext(ctx, in, req)
		if err != nil {
			return err
		}
		defer archive.Close()
		req.Context = archive
	}
	b, err := c.CreateTemplate(ctx, *req)
	if err != nil {
		return err
	}
	return a.queued(ctx, c, b, wait)
}

// packContext writes the build context to a temporary file, which is gone when it is
// closed.
func packContext(ctx context.Context, in source.Input, req *client.CreateTemplate) (_ *os.File, err error) {
	file, err := os.CreateTemp("", "kiln-context-")
	if err != nil {
		return nil, fmt.Errorf("build context: %w", err)
	}
	defer func() {
		if err != nil {
			_ = file.Close()
		}
	}()
	if err := os.Remove(file.Name()); err != nil {
		return nil, fmt.Errorf("build context: %w", err)
	}
	packed, err := source.Pack(ctx, in, file)
	if err != nil {
		return nil, err
	}
	req.Options.Dockerfile = packed.Dockerfile
	req.Warnings = packed.Warnings
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("build context: %w", err)
	}
	return file, nil
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

// cancelTimeout bounds the request that cancels a build whose reader was interrupted.
const cancelTimeout = 10 * time.Second

// queued tells what became of a request for a build and, if told to, follows it.
func (a *app) queued(ctx context.Context, c *client.Client, b *api.Build, wait bool) error {
	for _, warning := range b.Warnings {
		fmt.Fprintf(a.stderr, "warning: %s\n", warning)
	}
	if wait && !b.Unchanged {
		return a.follow(ctx, c, b)
	}
	if a.progressMode == progressJSON {
		if err := (&jsonDisplay{a.progress()}).end(b); err != nil {
			return err
		}
	}
	switch {
	case a.json():
		return a.printJSON(b)
	case a.progressMode == progressJSON: // has said it
	case b.Unchanged:
		fmt.Fprintf(a.stdout, "no change: %s stays at version %d\n", b.Name, b.Version)
	default:
		fmt.Fprintf(a.stdout, "building %s version %d\n", b.Name, b.Version)
		fmt.Fprintf(a.stdout, "follow it with: kiln templates logs -f %s\n", b.Name)
	}
	return nil
}

// follow shows a build until it has ended. When ctx ends first it cancels the build.
func (a *app) follow(ctx context.Context, c *client.Client, b *api.Build) error {
	start := time.Now()
	end, err := a.watch(ctx, c, a.progress(), b.ID, client.LogOptions{Follow: true})
	if err != nil && ctx.Err() != nil {
		return errors.Join(kiln.Errorf(kiln.CodeCanceled, "interrupted: the build of %s is being cancelled", b.Name), cancelBuild(ctx, c, b.ID))
	}
	if kiln.CodeOf(err) == kiln.CodeNotFound { // it was there when it was queued
		return kiln.Errorf(kiln.CodeNotFound, "template %s was deleted; its build was cancelled", b.Name)
	}
	if err != nil {
		return err
	}
	if err := buildFailure(end); err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(end)
	}
	if a.progressMode == progressJSON {
		return nil // its last line says it all
	}
	fmt.Fprintln(a.stdout)
	if err := stageTable(a.stdout, end.Stages); err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "\n%s version %d is ready (%s)\n", end.Name, end.Version, seconds(time.Since(start)))
	return nil
}

func cancelBuild(ctx context.Context, c *client.Client, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
	defer cancel()
	err := c.CancelBuild(ctx, id)
	if kiln.CodeOf(err) == kiln.CodeConflict {
		return nil // it has ended meanwhile
	}
	return err
}

// buildFailure returns why a build failed, or nil.
func buildFailure(b *api.Build) error {
	switch {
	case b.BuildError != nil:
		return b.BuildError
	case b.Status == api.BuildFailed:
		return kiln.Errorf(kiln.CodeBuildFailed, "%s version %d: %s", b.Name, b.Version, b.Error)
	}
	return nil
}

// stageTable prints where the time went.
func stageTable(w io.Writer, stages []kiln.StageResult) error {
	rows := [][]string{{"STAGE", "TIME", "CACHED", "DETAIL"}}
	var total time.Duration
	for _, s := range stages {
		total += s.Duration
		rows = append(rows, []string{string(s.Stage), seconds(s.Duration), yesNo(s.Cached), s.Detail})
	}
	return table(w, append(rows, []string{"total", seconds(total)}))
}
