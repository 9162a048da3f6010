package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/client"
)

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
	return a.summarize(end, fmt.Sprintf("\n%s version %d is ready (%s)\n", end.Name, end.Version, seconds(time.Since(start))))
}

// summarize prints where the time of a build went, then last.
func (a *app) summarize(end *api.Build, last string) error {
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
	_, err := fmt.Fprint(a.stdout, last)
	return err
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
