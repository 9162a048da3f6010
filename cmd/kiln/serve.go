package main

import (
	"io"
	"log/slog"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/cmd/kiln/server"
	"github.com/kilnvm/kiln/internal/config"
)

func (a *app) serveCommand() *cobra.Command {
	var configFile, listen string
	var noCatalogBuilds bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server: control plane and node in one process",
		Long: `Run the server: control plane and node in one process. It stops at SIGTERM or
SIGINT, and ends all sandboxes then; running builds go on after the next start.
docs/kiln.toml is an annotated configuration file.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.loadConfig(configFile)
			if err != nil {
				return err
			}
			if listen != "" {
				cfg.Listen = listen
			}
			if noCatalogBuilds {
				cfg.Catalog.Build = nil
			}
			if err := cfg.Validate(); err != nil {
				return err
			}
			return server.Run(cmd.Context(), server.Options{Config: cfg, Version: version, Log: newLogger(a.stderr, cfg.Log), LookupEnv: a.lookupEnv})
		},
	}
	cmd.Flags().StringVar(&configFile, "config", "", "configuration file")
	cmd.Flags().BoolVar(&noCatalogBuilds, "no-catalog-builds", false, "build every built-in template on its first use only")
	cmd.Flags().StringVar(&listen, "listen", "", "HOST:PORT of the API (default "+config.DefaultListen+")")
	return cmd
}

// loadConfig reads the file, if one is named, and lays the data directory that flag or
// environment names over it.
func (a *app) loadConfig(file string) (config.Config, error) {
	cfg := config.Default()
	if file != "" {
		var err error
		if cfg, err = config.Load(file); err != nil {
			return cfg, err
		}
	}
	dir := a.setting(a.dataDir, "KILN_DATA_DIR", cfg.DataDir)
	abs, err := filepath.Abs(dir)
	if err != nil {
		return cfg, kiln.Errorf(kiln.CodeInvalid, "data directory %s: %w", dir, err)
	}
	cfg.DataDir = abs
	return cfg, nil
}

func newLogger(w io.Writer, l config.Log) *slog.Logger {
	opts := &slog.HandlerOptions{}
	var level slog.Level
	if level.UnmarshalText([]byte(l.Level)) == nil {
		opts.Level = level
	}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
