package image

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	solvererrdefs "github.com/moby/buildkit/solver/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/image/base"
)

// resolveError explains why a Dockerfile could not be converted: it is wrong, or a base
// image cannot be had.
func (d *dockerfile) resolveError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		during := "looking for base images"
		var which *base.StoppedError
		if errors.As(err, &which) {
			during = fmt.Sprintf("getting the base image %s from %s", which.Name, which.Registry)
		}
		return stopped(ctx, during)
	}
	fault := &kiln.BuildError{Stage: kiln.StageImage, File: d.display, Err: err}
	var located *parser.LocationError
	if errors.As(err, &located) {
		fault.Line = firstLine(located.Locations)
		fault.Source = d.line(fault.Line)
		fault.Message = clean(located.Unwrap().Error())
	} else {
		fault.Message = clean(err.Error())
	}
	var missing *base.NotFoundError
	if errors.As(err, &missing) {
		fault.Message, fault.Hint = missing.Error(), missing.Hint()
		name := strings.TrimSuffix(missing.Name, ":latest")
		if fault.Line == 0 { // BuildKit knows none for mounts
			fault.Line = d.lineMatching(fromStage(name))
			fault.Source = d.line(fault.Line)
		}
		if !strings.ContainsAny(name, "./:@") && fromStage(name).MatchString(fault.Source) {
			fault.Hint = fmt.Sprintf("no earlier stage is named %s (FROM … AS %s), so it was taken for an image", name, name)
		}
		if !missing.Missing {
			return kiln.Errorf(kiln.CodeUnavailable, "%s:%d: %w", d.display, fault.Line, missing).WithHint("%s", fault.Hint)
		}
		return fault
	}
	var platform *unsupportedPlatformError
	if errors.As(err, &platform) {
		fault.Message, fault.Hint = platform.Error(), "remove --platform or use linux/amd64"
		return fault
	}
	fault.Hint = hintFor(fault.Message)
	return fault
}

// fromStage matches an instruction that reads from what it calls name, a stage or an image.
func fromStage(name string) *regexp.Regexp {
	return regexp.MustCompile(`(?i)\bfrom=["']?` + regexp.QuoteMeta(name) + `["']?(?:[\s,]|$)`)
}

func firstLine(locations [][]parser.Range) int {
	for _, l := range locations {
		if len(l) > 0 {
			return l[0].Start.Line
		}
	}
	return 0
}

// checkStageNames refuses a stage that has the name of a base image without a tag: base
// images are given to BuildKit by name, and it would take the stage for the image.
func (d *dockerfile) checkStageNames(images []base.Image) error {
	parsed, err := parser.Parse(strings.NewReader(string(d.content)))
	if err != nil {
		return err // cannot be: it has just been parsed
	}
	for _, node := range parsed.AST.Children {
		if !strings.EqualFold(node.Value, "from") {
			continue
		}
		words := strings.Fields(node.Original)
		if len(words) < 3 || !strings.EqualFold(words[len(words)-2], "as") {
			continue
		}
		name := words[len(words)-1]
		for _, img := range images {
			if strings.EqualFold(contextName(img.Ref), name) {
				fault := d.fail(fmt.Sprintf("stage %q has the name of a base image", name), "give the stage another name")
				fault.Line, fault.Source = node.StartLine, d.line(node.StartLine)
				return fault
			}
		}
	}
	return nil
}

// solveError explains why BuildKit failed. The user's faults become build errors; what
// is nobody's Dockerfile stays an error of ours.
func (d *dockerfile) solveError(ctx context.Context, err error, h *history, redact redactor) error {
	if ctx.Err() != nil {
		return stopped(ctx, h.running())
	}
	fault := &kiln.BuildError{Stage: kiln.StageImage, File: d.display, Message: redact.clean(clean(err.Error())), Err: err}
	located := false
	for _, source := range solvererrdefs.Sources(err) {
		if len(source.Ranges) > 0 {
			fault.Line = int(source.Ranges[0].Start.Line)
			fault.Source = redact.clean(d.line(fault.Line))
			located = true
			break
		}
	}
	if what := notAllowed.FindString(fault.Message); what != "" {
		fault.Message, fault.Line = what, d.lineMatching(insecure)
		fault.Source = d.line(fault.Line)
		located = true
	}
	var vertex *solvererrdefs.VertexError
	var exit *gatewaypb.ExitError
	if errors.As(err, &exit) {
		fault.ExitCode = int(exit.ExitCode)
		located = true
	}
	if errors.As(err, &vertex) || located {
		var step digest.Digest
		if vertex != nil {
			step = digest.Digest(vertex.Digest)
		}
		fault.Output = redact.cleanAll(h.output(step))
	}
	if name := h.failed(); !located && name != "" {
		// Old daemons say where and how a step failed in words only.
		if m := exitCode.FindStringSubmatch(fault.Message); m != nil {
			fault.ExitCode, _ = strconv.Atoi(m[1])
			fault.Line = d.lineOf(name)
			fault.Source = redact.clean(d.line(fault.Line))
			fault.Output = redact.cleanAll(h.output(""))
			located = true
		}
	}
	if !located {
		return fmt.Errorf("build %s: %w", d.display, err)
	}
	for _, line := range fault.Output {
		if m := notStarted.FindStringSubmatch(line); m != nil {
			fault.Message, fault.ExitCode = strings.ReplaceAll(m[1], `\"`, `"`), 0
		}
	}
	fault.Hint = hintForExit(fault.ExitCode, fault.Output)
	if fault.Hint == "" {
		fault.Hint = hintFor(fault.Message)
	}
	return fault
}

// stopped says that a build was ended from outside, and during what.
func stopped(ctx context.Context, during string) error {
	at := ""
	if during != "" {
		at = " during: " + during
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &kiln.Error{Code: kiln.CodeTimeout, Message: "the build was stopped" + at, Err: context.Cause(ctx)}
	}
	return kiln.Errorf(kiln.CodeCanceled, "the build was cancelled%s: %w", at, context.Cause(ctx))
}

// noise is what BuildKit puts before the part of a message that says something: layers
// of its own working, and positions that a BuildError has fields for.
var noise = regexp.MustCompile(`^(?:failed to solve: |rpc error: code = \w+ desc = |` +
	`failed to (?:compute cache key|calculate checksum of ref [^:]+(?:::[^:]+)?|load cache key|read dockerfile|process "[^"]*"): |` +
	`dockerfile parse error(?: on)? line \d+: )`)

func clean(message string) string {
	for {
		shorter := noise.ReplaceAllString(message, "")
		if shorter == message {
			return message
		}
		message = shorter
	}
}

var (
	// notAllowed is BuildKit's refusal of a privileged step, which names no line.
	notAllowed = regexp.MustCompile(`[a-z]+\.[a-z]+ is not allowed$`)
	insecure   = regexp.MustCompile(`--security=insecure`)
	exitCode   = regexp.MustCompile(`exit code: (\d+)$`)
	// notStarted is what runc prints when it cannot start a command at all; its own exit
	// code then says nothing.
	notStarted = regexp.MustCompile(`unable to start container process: (.*)$`)
)

// hints are for messages of BuildKit's that leave people at a loss. BuildKit gives text
// only, so the text has to tell.
var hints = []struct {
	message *regexp.Regexp
	hint    string
}{
	{regexp.MustCompile(`": not found$`), "paths are relative to the build context, and .dockerignore can hide files from it"},
	{regexp.MustCompile(`forbidden path outside the build context`), "only files inside the build context can be copied"},
	{regexp.MustCompile(`target stage .* could not be found`), "the target must be the name of a stage: FROM … AS name"},
	{regexp.MustCompile(`should not be blank`), "give the ARG a default before FROM, or a value with --build-arg"},
	{regexp.MustCompile(`did you mean`), ""},
	{regexp.MustCompile(`unknown instruction`), "an instruction goes over to the next line only after a backslash"},
	{regexp.MustCompile(`no build stage in current context`), "the first instruction is FROM"},
	{regexp.MustCompile(`is not allowed$`), "privileged build steps are not available"},
	{regexp.MustCompile(`secret .*not found|not found.*secret`), "give the secret when you start the build"},
	{regexp.MustCompile(`exec: "/bin/sh"`), "the image has no shell: use the form RUN [\"program\", \"argument\"]"},
	{regexp.MustCompile(`exec: ".*no such file`), "the program does not exist in the image"},
}

func hintFor(message string) string {
	for _, h := range hints {
		if h.message.MatchString(message) {
			return h.hint
		}
	}
	return ""
}

// hintForExit explains exit codes with a meaning, and commands without disk space or network.
func hintForExit(code int, output []string) string {
	switch code {
	case 0:
		return ""
	case 126:
		return "a program of the command cannot be run: is it executable, and made for linux/amd64?"
	case 127:
		return "a program of the command does not exist in the image: install it first, or check its spelling"
	case 137:
		return "the command was killed, most often because memory ran out"
	}
	for _, line := range output {
		if strings.Contains(line, "No space left on device") {
			return "the disk that builds run on is full: free space in the server's data directory"
		}
		if strings.Contains(line, "Temporary failure resolving") || strings.Contains(line, "Could not resolve host") {
			return "the build machine cannot resolve that host name: check its network and DNS"
		}
	}
	return ""
}
