package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/client"
)

// runCode is one run of `kiln sandbox run-code`.
type runCode struct {
	*app
	sandbox    sandboxFlags
	code, save string
	contextID  string
	pictures   int
	failed     bool
}

func (a *app) sandboxRunCode() *cobra.Command {
	r := &runCode{app: a}
	cmd := &cobra.Command{
		Use:   "run-code ID|-t TEMPLATE [FILE]",
		Short: "Run Python in the interpreter that a sandbox has running already",
		Long: `Run Python in the Jupyter kernel that a sandbox of the template code-interpreter has
running already, and show what it prints and its result as they come. The code is -c CODE,
FILE, or standard input. State stays in the sandbox from one run to the next; with -t the
sandbox is a new one and ends with the run. -o json prints the events, one a line. The exit
code is 1 if the code raised an error.`,
		Args: cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error { return ownFailure(r.run(cmd.Context(), args)) },
	}
	r.sandbox.add(cmd)
	flags := cmd.Flags()
	flags.StringVarP(&r.code, "code", "c", "", "the code")
	flags.StringVar(&r.save, "save", "", "folder for the pictures of its results")
	flags.StringVar(&r.contextID, "context", "", "context to run in (default the one from the snapshot)")
	return cmd
}

func (r *runCode) run(ctx context.Context, args []string) error {
	c, err := r.client()
	if err != nil {
		return err
	}
	id := ""
	if r.sandbox.template == "" {
		if len(args) == 0 {
			return usageError{kiln.Errorf(kiln.CodeInvalid, "no sandbox given").WithHint("name one, or start one with -t code-interpreter")}
		}
		id, args = args[0], args[1:]
	}
	code, err := r.readCode(args)
	if err != nil {
		return err
	}
	use := func(id string) error {
		return c.RunCode(ctx, id, client.RunCode{Code: code, ContextID: r.contextID}, r.show)
	}
	if id != "" {
		err = use(id)
	} else if req, rerr := r.sandbox.request(); rerr != nil {
		err = rerr
	} else {
		err = r.withSandbox(ctx, req, func(sb *api.Sandbox) error { return use(sb.ID) })
	}
	if err == nil && r.failed {
		return commandExit{1}
	}
	return err
}

func (r *runCode) readCode(args []string) (string, error) {
	switch {
	case r.code != "" && len(args) > 0, len(args) > 1:
		return "", usageError{kiln.Errorf(kiln.CodeInvalid, "the code is given twice: -c CODE or FILE")}
	case r.code != "":
		return r.code, nil
	case len(args) == 0 || args[0] == "-":
		text, err := io.ReadAll(r.stdin)
		return string(text), err
	}
	text, err := os.ReadFile(args[0])
	if err != nil {
		return "", kiln.Errorf(kiln.CodeInvalid, "code: %w", err)
	}
	return string(text), nil
}

// show prints one event.
func (r *runCode) show(e client.CodeEvent) error {
	r.failed = r.failed || e.Type == "error"
	if r.json() {
		_, err := fmt.Fprintf(r.stdout, "%s\n", e.Raw)
		return err
	}
	var err error
	switch e.Type {
	case "stdout":
		_, err = io.WriteString(r.stdout, e.Text)
	case "stderr":
		_, err = io.WriteString(r.stderr, e.Text)
	case "result":
		return r.showResult(e)
	case "error":
		text := e.Traceback
		if text == "" {
			text = e.Name + ": " + e.Value
		}
		_, err = fmt.Fprintln(r.stderr, text)
	}
	return err
}

func (r *runCode) showResult(e client.CodeEvent) error {
	for suffix, picture := range map[string]string{".png": e.PNG, ".jpeg": e.JPEG, ".svg": e.SVG} {
		if picture == "" || r.save == "" {
			continue
		}
		if err := r.savePicture(suffix, picture); err != nil {
			return err
		}
	}
	if e.Text == "" {
		return nil
	}
	_, err := fmt.Fprintln(r.stdout, e.Text)
	return err
}

func (r *runCode) savePicture(suffix, picture string) error {
	content := []byte(picture)
	if suffix != ".svg" { // which is text
		var err error
		if content, err = base64.StdEncoding.DecodeString(strings.TrimSpace(picture)); err != nil {
			return fmt.Errorf("picture: %w", err)
		}
	}
	r.pictures++
	name := filepath.Join(r.save, fmt.Sprintf("result-%d%s", r.pictures, suffix))
	if err := os.WriteFile(name, content, 0o644); err != nil {
		return kiln.Errorf(kiln.CodeInvalid, "picture: %w", err)
	}
	fmt.Fprintf(r.progress(), "saved %s\n", name)
	return nil
}
