package pipeline

import (
	"maps"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/source"
)

// normal makes metadata comparable: a value that came back from the database has nil
// where a fresh one may have an empty map.
func normal(m kiln.Metadata) kiln.Metadata {
	if len(m.Env) == 0 {
		m.Env = nil
	}
	if len(m.Tags) == 0 {
		m.Tags = nil
	}
	if len(m.Build.Args) == 0 {
		m.Build.Args = nil
	}
	return m
}

// mergeMetadata returns file with what over sets, and checks what comes of it.
func mergeMetadata(file, over kiln.Metadata) (kiln.Metadata, error) {
	m := overMetadata(file, over)
	if err := source.CheckMetadata(m); err != nil {
		return kiln.Metadata{}, err
	}
	return m, nil
}

// overMetadata returns file with what over sets. Environments and build arguments are joined.
func overMetadata(file, over kiln.Metadata) kiln.Metadata {
	m := file
	for _, f := range []struct {
		dst *string
		src string
	}{
		{&m.Name, over.Name}, {&m.Description, over.Description}, {&m.Author, over.Author}, {&m.Icon, over.Icon},
		{&m.DefaultSize, over.DefaultSize}, {&m.MinSize, over.MinSize}, {&m.StartCmd, over.StartCmd}, {&m.ReadyCmd, over.ReadyCmd},
		{&m.PostRestore, over.PostRestore}, {&m.Init, over.Init}, {&m.Smoke, over.Smoke}, {&m.Build.Target, over.Build.Target},
	} {
		if f.src != "" {
			*f.dst = f.src
		}
	}
	if over.Tags != nil {
		m.Tags = over.Tags
	}
	if over.DiskMB != 0 {
		m.DiskMB = over.DiskMB
	}
	m.Egress = over.Egress.Over(m.Egress)
	m.Limits = over.Limits.Over(m.Limits)
	if over.Build.Base != nil {
		m.Build.Base = over.Build.Base
	}
	m.Build.Args = overlay(m.Build.Args, over.Build.Args)
	m.Env = overlay(m.Env, over.Env)
	return m
}

// overlay returns the entries of both maps; those of over win.
func overlay(under, over map[string]string) map[string]string {
	if len(over) == 0 {
		return under
	}
	all := make(map[string]string, len(under)+len(over))
	maps.Copy(all, under)
	maps.Copy(all, over)
	return all
}
