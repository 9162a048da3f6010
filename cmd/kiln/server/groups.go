package server

import (
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"time"

	"github.com/kilnvm/kiln/internal/cgroup"
	"github.com/kilnvm/kiln/internal/config"
	"github.com/kilnvm/kiln/internal/sandbox"
)

// groups are the control groups of this server's VMs. Both are nil where there are none.
type groups struct{ sandboxes, bakes *cgroup.Tree }

// openGroups opens them under a name that only this data directory has.
func openGroups(cfg config.Config, log *slog.Logger) (g groups, err error) {
	if cfg.Sandbox.Cgroups == "off" {
		return groups{}, nil
	}
	sum := sha256.Sum256([]byte(cfg.DataDir))
	server := hex.EncodeToString(sum[:6])
	if g.sandboxes, err = cgroup.Open(server, "sandboxes"); err == nil {
		g.bakes, err = cgroup.Open(server, "bakes")
	}
	if err == nil {
		return g, nil
	}
	g.close()
	if cfg.Sandbox.Cgroups == "require" {
		return groups{}, err
	}
	log.Warn("virtual machines run without control groups: a busy one can slow down all others", "err", err)
	return groups{}, nil
}

func (g groups) close() {
	for _, tree := range []*cgroup.Tree{g.sandboxes, g.bakes} {
		if tree != nil {
			tree.Close()
		}
	}
}

func sandboxLimits(cfg config.Config) sandbox.Limits {
	s := cfg.Sandbox
	return sandbox.Limits{
		DefaultTTL: time.Duration(s.DefaultTTL), MaxRunning: s.MaxRunning, MaxPerOrg: s.MaxPerOrg, OrgLimits: s.OrgLimits,
		Overcommit: s.Overcommit, ReserveMiB: s.ReserveMB,
	}
}

func warmLimits(cfg config.Config) sandbox.WarmLimits {
	return sandbox.WarmLimits{MaxDemand: cfg.Pool.MaxDemand, MaxMemoryMiB: cfg.Pool.MaxMemoryMB, Targets: cfg.Pool.Targets,
		SpawnAhead: cfg.Pool.SpawnAhead}
}
