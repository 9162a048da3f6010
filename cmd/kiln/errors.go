package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/spf13/pflag"

	"github.com/kilnvm/kiln"
)

// Exit codes, as `kiln --help` documents them.
const (
	exitFailure     = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitConflict    = 4
	exitNotAllowed  = 5
	exitUnavailable = 6
	exitBuildFailed = 7
	exitKilnFailed  = 125 // of run and exec, whose other codes are the command's
	exitInterrupted = 130
)

// usageError is a command line that makes no sense.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// commandExit is not an error of ours: a command in a sandbox ended with this code.
type commandExit struct{ code int }

func (e commandExit) Error() string { return fmt.Sprintf("the command exited with code %d", e.code) }

// silent is an error that has been told already.
type silent struct{ code int }

func (e silent) Error() string { return "failed" }

// kilnFailure marks errors of run and exec that are Kiln's, not the command's.
type kilnFailure struct{ error }

func (e kilnFailure) Unwrap() error { return e.error }

// report prints err and returns the exit code for it.
func (a *app) report(ctx context.Context, err error) int {
	var exit commandExit
	var told silent
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.code
	case errors.As(err, &told):
		return told.code
	case interrupted(ctx, err):
		fmt.Fprintln(a.stderr, "kiln: interrupted")
		return exitInterrupted
	}
	printError(a.stderr, err)
	return exitCode(ctx, err)
}

// interrupted is whether err is nothing but the end of ctx: whoever pressed Ctrl-C knows the rest.
func interrupted(ctx context.Context, err error) bool {
	return ctx.Err() != nil && errors.Is(err, context.Canceled)
}

func exitCode(ctx context.Context, err error) int {
	var usage usageError
	var failure kilnFailure
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case interrupted(ctx, err):
		return exitInterrupted
	case errors.As(err, &failure):
		return exitKilnFailed
	case ctx.Err() != nil:
		return exitInterrupted
	}
	switch kiln.CodeOf(err) {
	case kiln.CodeInvalid:
		return exitUsage
	case kiln.CodeNotFound:
		return exitNotFound
	case kiln.CodeConflict:
		return exitConflict
	case kiln.CodeUnauthorized, kiln.CodeForbidden:
		return exitNotAllowed
	case kiln.CodeUnavailable, kiln.CodeExhausted, kiln.CodeLimit, kiln.CodeTimeout:
		return exitUnavailable
	case kiln.CodeBuildFailed:
		return exitBuildFailed
	case kiln.CodeCanceled:
		return exitInterrupted
	}
	return exitFailure
}

// flagError says what a flag takes, where the library repeats a parser's words.
func flagError(err error) error {
	var bad *pflag.InvalidValueError
	if !errors.As(err, &bad) {
		return err
	}
	want := map[string]string{
		"duration": "a duration such as 90s, 5m or 1h30m", "int": "a whole number", "intSlice": "a whole number", "int64": "a whole number", "float64": "a number", "bool": "true or false",
	}[bad.GetFlag().Value.Type()]
	if want == "" {
		return err
	}
	return kiln.Errorf(kiln.CodeInvalid, "--%s: %q is not %s", bad.GetFlag().Name, bad.GetValue(), want)
}

// printError writes one line with what went wrong and, where there is one, a line with
// what to do. A failed build also shows the place and the last output.
func printError(w io.Writer, err error) {
	var build *kiln.BuildError
	if errors.As(err, &build) {
		printBuildError(w, build)
		return
	}
	message, hint := err.Error(), ""
	var known *kiln.Error
	if errors.As(err, &known) {
		message, hint = known.Message, known.Hint
	}
	fmt.Fprintf(w, "kiln: %s\n", oneLine(kiln.CutQuotes(message)))
	printHint(w, hint)
}

func printBuildError(w io.Writer, e *kiln.BuildError) {
	place := ""
	switch {
	case e.File != "" && e.Line > 0:
		place = fmt.Sprintf("%s:%d: ", e.File, e.Line)
	case e.File != "":
		place = e.File + ": "
	}
	fmt.Fprintf(w, "kiln: %s: %s%s\n", e.Stage, place, oneLine(kiln.CutQuotes(e.Message)))
	for i, line := range strings.Split(strings.TrimRight(e.Source, "\n"), "\n") {
		switch {
		case e.Source == "":
		case i == 0:
			fmt.Fprintf(w, "  %d | %s\n", e.Line, shownLine(line))
		default:
			fmt.Fprintf(w, "    | %s\n", shownLine(line))
		}
	}
	if len(e.Output) > 0 {
		fmt.Fprintf(w, "last output:\n")
		for _, line := range e.Output {
			fmt.Fprintf(w, "  | %s\n", shownLine(line))
		}
	}
	printHint(w, e.Hint)
}

func printHint(w io.Writer, hint string) {
	if hint != "" {
		fmt.Fprintf(w, "hint: %s\n", oneLine(hint))
	}
}

func oneLine(s string) string {
	return plain(strings.ReplaceAll(strings.TrimSpace(s), "\n", "; "))
}

// escapes are what terminals take for orders: colours, cursor movements, titles.
var escapes = regexp.MustCompile("\x1b(?:\\[[0-?]*[ -/]*[@-~]|\\][^\x07\x1b]*(?:\x07|\x1b\\\\)?)")

// plain is printable text without the rests of orders to a terminal.
func plain(s string) string { return printable(escapes.ReplaceAllString(s, "")) }

// maxShownLine is how many characters of a line of output an error repeats.
const maxShownLine = 400

// shownLine is a line of output as an error repeats it: what a terminal would show of it at
// last, and not without end.
func shownLine(line string) string {
	line = strings.TrimRight(line, "\r")
	runes := []rune(plain(line[strings.LastIndexByte(line, '\r')+1:]))
	if len(runes) > maxShownLine {
		return string(runes[:maxShownLine]) + "…"
	}
	return string(runes)
}
