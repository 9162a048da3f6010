package telemetry

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/kilnvm/kiln"
)

// Host is asked for the present state when metrics are read.
type Host interface {
	// Counts returns how many living sandboxes are in each state.
	Counts() map[kiln.SandboxStatus]int
	// Warm returns the shelves of the warm pool.
	Warm() []kiln.WarmShelf
	// Traffic returns what all sandboxes have sent and received since the server started;
	// it never decreases.
	Traffic() kiln.NetworkUse
	// NetworkSlots returns how many connections to the network there are.
	NetworkSlots() kiln.NetworkSlots
}

// Watch has the metrics show what a host says. It is called once.
func (m *Metrics) Watch(h Host) {
	m.registry.MustRegister(&hostCollector{host: h, templates: &m.templates})
}

// hostCollector is a [prometheus.Collector] that keeps nothing itself.
type hostCollector struct {
	host      Host
	templates *templateLabels
}

var (
	sandboxesDesc = prometheus.NewDesc("kiln_sandboxes", "Living sandboxes by state.", []string{"state"}, nil)
	readyDesc     = prometheus.NewDesc("kiln_warm_slots", "Warm slots that are ready to be claimed.", []string{"template", "size"}, nil)
	targetDesc    = prometheus.NewDesc("kiln_warm_slots_target", "Warm slots that are to be kept.", []string{"template", "size"}, nil)
	spawnedDesc   = prometheus.NewDesc("kiln_spawned_vmms", "VMMs that have been started ahead and wait.", []string{"template", "size"}, nil)
	bytesDesc     = prometheus.NewDesc("kiln_network_bytes_total", "Bytes that sandboxes sent to and received from their network.", []string{"direction"}, nil)
	slotsDesc     = prometheus.NewDesc("kiln_network_slots", "Network slots: used ones, and those that are prepared.", []string{"state"}, nil)
	limitDesc     = prometheus.NewDesc("kiln_network_slots_limit", "Network slots that there are addresses for; 0 without a network.", nil, nil)
	deniedDesc    = prometheus.NewDesc("kiln_network_denied_total",
		"What sandboxes attempted and was denied: packets, look-ups of names, and frames that are no packets of theirs.", []string{"kind"}, nil)
)

// Describe implements [prometheus.Collector].
func (c *hostCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{sandboxesDesc, readyDesc, targetDesc, spawnedDesc, bytesDesc, deniedDesc, slotsDesc, limitDesc} {
		out <- d
	}
}

// living are the states that are shown even when no sandbox is in them.
var living = []kiln.SandboxStatus{
	kiln.SandboxCreating, kiln.SandboxRunning, kiln.SandboxPausing, kiln.SandboxPaused, kiln.SandboxWaking, kiln.SandboxStopping,
}

// Collect implements [prometheus.Collector].
func (c *hostCollector) Collect(out chan<- prometheus.Metric) {
	counts := c.host.Counts()
	for _, state := range living {
		out <- gauge(sandboxesDesc, counts[state], string(state))
	}
	c.collectPool(out)
	slots := c.host.NetworkSlots()
	out <- gauge(slotsDesc, slots.Used, "used")
	out <- gauge(slotsDesc, slots.Free, "free")
	out <- gauge(limitDesc, slots.Limit)
	use := c.host.Traffic()
	out <- counter(bytesDesc, use.SentBytes, "sent")
	out <- counter(bytesDesc, use.ReceivedBytes, "received")
	out <- counter(deniedDesc, use.RefusedPackets, "packet")
	out <- counter(deniedDesc, use.RefusedNames, "name")
	out <- counter(deniedDesc, use.DroppedFrames, "frame")
}

// collectPool adds up the versions of a template.
func (c *hostCollector) collectPool(out chan<- prometheus.Metric) {
	type key struct{ template, size string }
	ready, target, spawned := map[key]int{}, map[key]int{}, map[key]int{}
	for _, s := range c.host.Warm() {
		k := key{c.templates.of(s.OrgID, s.TemplateID, s.Template), s.Size}
		ready[k] += s.Ready
		target[k] += s.Target()
		spawned[k] += s.Spawned
	}
	for k, n := range ready {
		out <- gauge(readyDesc, n, k.template, k.size)
		out <- gauge(targetDesc, target[k], k.template, k.size)
		out <- gauge(spawnedDesc, spawned[k], k.template, k.size)
	}
}

func gauge(d *prometheus.Desc, n int, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
}

func counter(d *prometheus.Desc, n uint64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
}
