package config

import "time"

// GC says what is kept although nothing refers to it.
type GC struct {
	// Keep is how many of the newest ready versions of every template are kept.
	Keep int `toml:"keep"`
	// Every is the time between two runs; 0 means that only `kiln gc` collects.
	Every Duration `toml:"every"`
	// SandboxHistory is how long sandboxes that have ended are still listed.
	SandboxHistory Duration `toml:"sandbox_history"`
	// AuditHistory is how long the audit log keeps a change.
	AuditHistory Duration `toml:"audit_history"`
}

func defaultGC() GC {
	return GC{Keep: 3, Every: Duration(time.Hour), SandboxHistory: Duration(7 * 24 * time.Hour), AuditHistory: Duration(90 * 24 * time.Hour)}
}

func (c *Config) checkGC() error {
	if c.GC.Keep < 1 {
		return invalid("gc.keep", "must be at least 1")
	}
	if c.GC.Every < 0 {
		return invalid("gc.every", "must not be negative")
	}
	if err := positive("gc.sandbox_history", c.GC.SandboxHistory); err != nil {
		return err
	}
	return positive("gc.audit_history", c.GC.AuditHistory)
}
