package kiln

// WarmTarget says how many warm slots are kept of a template's promoted version at a size,
// whatever the recent demand.
type WarmTarget struct {
	OrgID      string `json:"-"` // whose the template is; "" for a built-in one
	TemplateID string `json:"template_id"`
	Size       string `json:"size"`
	Slots      int    `json:"slots"`
}

// WarmShelf is the warm slots of one version at one size, as they are now.
type WarmShelf struct {
	TemplateID string `json:"template_id"`
	OrgID      string `json:"-"`
	Template   string `json:"template"`
	Version    int    `json:"version"`
	Size       string `json:"size"`
	// Set is what was asked for by configuration or request, Demand what recent requests
	// suggest; the larger of them is kept.
	Set    int `json:"set"`
	Demand int `json:"demand"`
	Ready  int `json:"ready"`
	// Hits and Misses count the starts that found a slot and those that did not, since the
	// server started.
	Hits   int `json:"hits"`
	Misses int `json:"misses"`
	// Spawned is how many VMMs have been started ahead and wait, SpawnedHits how many starts
	// found one. Such a start is one from a snapshot.
	Spawned     int `json:"spawned"`
	SpawnedHits int `json:"spawned_hits"`
	// Error is why the last slot could not be made, "" when it could.
	Error string `json:"error,omitempty"`
}

// Target is how many slots are to be kept.
func (s *WarmShelf) Target() int { return max(s.Set, s.Demand) }
