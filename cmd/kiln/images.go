package main

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/cmd/kiln/server"
	"github.com/kilnvm/kiln/internal/image"
	"github.com/kilnvm/kiln/internal/image/builder"
)

// runChild runs the builder if this process was started to be it.
func runChild(args []string) (code int, ok bool) {
	if len(args) > 0 && args[0] == builder.ChildArg {
		return image.ChildMain(args[1:]), true
	}
	return 0, false
}

func (a *app) imagesCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "images", Short: "Prepare base images"}
	cmd.AddCommand(a.imagesBootstrap())
	return cmd
}

func (a *app) imagesBootstrap() *cobra.Command {
	var configFile string
	cmd := &cobra.Command{
		Use:   "bootstrap NAME",
		Short: "Make a base image such as debian:bookworm from its distribution's package archive",
		Long: `Make a base image such as debian:bookworm-slim or ubuntu:24.04 from its
distribution's package archive and keep it with the local server's base images. Builds do
so themselves when no registry can be reached.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := a.loadConfig(configFile)
			if err != nil {
				return err
			}
			images, err := image.New(server.ImageOptions(cfg))
			if err != nil {
				return err
			}
			base, err := images.Bootstrap(cmd.Context(), args[0], linesTo(a.progress()))
			if err := errors.Join(err, images.Close()); err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(base)
			}
			_, err = fmt.Fprintf(a.stdout, "%s is %s\n", base.Name, base.Digest)
			return err
		},
	}
	cmd.Flags().StringVar(&configFile, "config", "", "configuration file of the server")
	return cmd
}

// lines is a kiln.Progress that writes to w.
type lines struct {
	mu *sync.Mutex
	w  io.Writer
}

func linesTo(w io.Writer) kiln.Progress { return lines{&sync.Mutex{}, w} }

// Log implements kiln.Progress.
func (l lines) Log(_ kiln.Stage, line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintln(l.w, line)
}
