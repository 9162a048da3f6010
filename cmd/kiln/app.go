package main

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"errors"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/cmd/kiln/server"
	"github.com/kilnvm/kiln/internal/client"
	"github.com/kilnvm/kiln/internal/config"
)

// app is one run of the program: its streams, its environment and the global flags.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	lookupEnv      func(string) (string, bool)

	serverURL string // --server
	token     string // --token
	dataDir   string // --data-dir
	output    string // -o

	progressMode string // --progress
}

func (a *app) root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kiln",
		Short: "MicroVM sandboxes that start in milliseconds, from any Dockerfile",
		Long: `Kiln builds a template from a Dockerfile once and starts any number of private
clones of it, each a virtual machine of its own.

Exit codes: 0 success; 1 failure; 2 wrong usage or request; 3 not found; 4 conflict;
5 not allowed; 6 server or host cannot do it now; 7 build failed; 130 interrupted.
'sandbox run' and 'sandbox exec' exit with the command's own code: 127 if it does not
exist, 128+n if signal n ended it, and 125 if Kiln itself failed.`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	flags := cmd.PersistentFlags()
	flags.StringVar(&a.serverURL, "server", "", "URL of the server (default $KILN_SERVER, else the local one)")
	flags.StringVar(&a.token, "token", "", "access token (default $KILN_TOKEN, else the local server's)")
	flags.StringVar(&a.dataDir, "data-dir", "", "data directory of the local server (default $KILN_DATA_DIR, else "+config.DefaultDataDir+")")
	flags.StringVarP(&a.output, "output", "o", "text", "text or json, for some commands also wide")
	cmd.PersistentPreRunE = func(c *cobra.Command, _ []string) error {
		if err := c.ValidateFlagGroups(); err != nil {
			return usageError{err}
		}
		return a.checkOutput(c)
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{flagError(err)} })
	cmd.AddCommand(
		a.serveCommand(), a.waitCommand(), a.templatesCommand(), a.sandboxCommand(), a.poolCommand(), a.topCommand(), a.imagesCommand(), a.rootfsCommand(),
		a.benchCommand(), a.orgsCommand(), a.tokensCommand(), a.whoamiCommand(), a.auditCommand(), a.gcCommand(), a.doctorCommand(), a.versionCommand(),
	)
	asUsageErrors(cmd)
	return cmd
}

func (a *app) checkOutput(cmd *cobra.Command) error {
	if _, wide := cmd.Annotations[wideOutput]; wide && a.output == wideOutput {
		return nil
	}
	if a.output != "text" && a.output != "json" {
		return usageError{kiln.Errorf(kiln.CodeInvalid, "unknown output format %q", a.output).WithHint("use -o text or -o json")}
	}
	return nil
}

// asUsageErrors makes wrong arguments of every command below cmd usage errors, and a
// group of commands without a command one, too.
func asUsageErrors(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usageError{kiln.Errorf(kiln.CodeInvalid, "%v", err).WithHint("usage: %s", c.UseLine())}
			}
			return nil
		}
	}
	if cmd.HasSubCommands() {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			return usageError{kiln.Errorf(kiln.CodeInvalid, "unknown command %q", c.CommandPath()+" "+args[0]).WithHint("%s --help lists the commands", c.CommandPath())}
		}
	}
	for _, sub := range cmd.Commands() {
		asUsageErrors(sub)
	}
}

// setting returns the flag's value, else the environment variable's, else def.
func (a *app) setting(flag, env, def string) string {
	if flag != "" {
		return flag
	}
	if v, ok := a.lookupEnv(env); ok && v != "" {
		return v
	}
	return def
}

// localDataDir is where the local server keeps its data.
func (a *app) localDataDir() string {
	dir := a.setting(a.dataDir, "KILN_DATA_DIR", config.DefaultDataDir)
	if abs, err := filepath.Abs(dir); err == nil {
		return abs
	}
	return dir
}

// client returns a client of the server that flags, environment or the local data
// directory name.
func (a *app) client() (*client.Client, error) {
	url, err := a.server()
	if err != nil {
		return nil, err
	}
	token := a.setting(a.token, "KILN_TOKEN", "")
	if token == "" {
		if token, err = a.localToken(); err != nil {
			return nil, err
		}
	}
	return client.New(client.Options{Server: url, Token: token})
}

// withClient makes the function of a command out of one that talks to the server.
func (a *app) withClient(run func(cmd *cobra.Command, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		return run(cmd, c, args)
	}
}

func (a *app) server() (string, error) {
	if url := a.setting(a.serverURL, "KILN_SERVER", ""); url != "" {
		return url, nil
	}
	info, err := server.ReadInfo(a.localDataDir())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", a.notRunning()
	case errors.Is(err, fs.ErrPermission):
		return "", kiln.Errorf(kiln.CodeForbidden, "the local server's files in %s are not yours to read", a.localDataDir()).
			WithHint("run as root, or set KILN_SERVER and KILN_TOKEN")
	case err != nil:
		return "", err
	}
	return info.URL, nil
}

func (a *app) notRunning() error {
	return kiln.Errorf(kiln.CodeUnavailable, "no server is running on %s", a.localDataDir()).
		WithHint("start one with 'kiln serve', or name another with --server URL or KILN_SERVER")
}

// localToken reads DIR/token. A remote server may have none here; it will say so.
func (a *app) localToken() (string, error) {
	b, err := os.ReadFile(server.TokenPath(a.localDataDir()))
	switch {
	case err == nil:
		return strings.TrimSpace(string(b)), nil
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case errors.Is(err, fs.ErrPermission):
		return "", kiln.Errorf(kiln.CodeForbidden, "the local server's token in %s is not yours to read", a.localDataDir()).
			WithHint("run as root, or set KILN_TOKEN")
	}
	return "", err
}
