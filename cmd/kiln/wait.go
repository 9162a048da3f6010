package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln"
)

// pollReady is how often wait asks: what it waits for may not even listen yet.
const pollReady = 100 * time.Millisecond

func (a *app) waitCommand() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "wait", Short: "Wait until the server can build and start", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			if err := a.waitReady(ctx); err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(map[string]bool{"ready": true})
			}
			_, err := fmt.Fprintln(a.stdout, "ready")
			return err
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "give up after so long")
	return cmd
}

// waitReady asks until the server is ready. Its address may change meanwhile.
func (a *app) waitReady(ctx context.Context) error {
	tick := time.NewTicker(pollReady)
	defer tick.Stop()
	var last error
	for {
		c, err := a.client()
		if err == nil {
			err = c.Ready(ctx)
		}
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		if kiln.CodeOf(err) != kiln.CodeUnavailable && ctx.Err() == nil {
			return err // waiting does not mend a wrong address
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if last == nil {
				last = ctx.Err()
			}
			return &kiln.Error{Code: kiln.CodeTimeout, Message: fmt.Sprintf("the server is not ready: %v", message(last)), Err: last}
		}
	}
}

// message is an error without its hint.
func message(err error) string {
	var e *kiln.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return err.Error()
}
