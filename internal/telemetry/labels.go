package telemetry

import "sync"

// MaxTemplates is how many templates have series of their own: the built-in ones, and as
// many others, the first that were used, as are left of it. The rest share one.
const MaxTemplates = 200

const otherTemplates = "other"

// templateLabels chooses label values for templates. The zero value is ready to use.
type templateLabels struct {
	mu    sync.Mutex
	known map[string]bool
}

// of returns the name of a built-in template and the ID of any other one: its name is its
// owner's business, and another template may have it.
func (l *templateLabels) of(orgID, id, name string) string {
	label, builtIn := id, orgID == ""
	if builtIn {
		label = name
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known[label] {
		return label
	}
	if len(l.known) >= MaxTemplates && !builtIn {
		return otherTemplates
	}
	if l.known == nil {
		l.known = map[string]bool{}
	}
	l.known[label] = true
	return label
}
