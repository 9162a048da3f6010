package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln/cmd/kiln/server"
	"github.com/kilnvm/kiln/internal/doctor"
)

func (a *app) doctorCommand() *cobra.Command {
	var configFile string
	cmd := &cobra.Command{
		Use: "doctor", Short: "Find out what works on this host and what is missing", Args: cobra.NoArgs,
		Long: `Find out what works on this host and what is missing, by using it, and print the
command that mends it. The exit code is 1 if Kiln could not do its job here.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.loadConfig(configFile)
			if err != nil {
				return err
			}
			checks := doctor.Run(cmd.Context(), server.DoctorOptions(cfg))
			if err := a.printChecks(checks); err != nil {
				return err
			}
			if doctor.Failed(checks) {
				return silent{exitFailure}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&configFile, "config", "", "configuration file of the server")
	return cmd
}

func (a *app) printChecks(checks []doctor.Check) error {
	if a.json() {
		return a.printJSON(checks)
	}
	rows := make([][]string, 0, len(checks))
	for _, c := range checks {
		rows = append(rows, []string{strings.ToUpper(string(c.Status)), c.Name, oneLine(c.Detail)})
		if c.Fix != "" && c.Status != doctor.OK {
			rows = append(rows, []string{"", "", "fix: " + c.Fix})
		}
	}
	if err := table(a.stdout, rows); err != nil {
		return err
	}
	if doctor.Failed(checks) {
		_, err := fmt.Fprintln(a.stdout, "\nKiln cannot do its job on this host until the failures are mended.")
		return err
	}
	return nil
}
