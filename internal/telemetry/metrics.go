package telemetry

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/kilnvm/kiln"
)

// Metrics counts what happens on a server. Its methods are safe for concurrent use and
// return at once.
type Metrics struct {
	registry  *prometheus.Registry
	templates templateLabels

	boots      *prometheus.HistogramVec
	notStarted *prometheus.CounterVec
	restarts   prometheus.Counter
	refused    *prometheus.CounterVec
	claims     *prometheus.CounterVec
	commands   prometheus.Counter
	builds     *prometheus.CounterVec
	failures   *prometheus.CounterVec
	stages     *prometheus.HistogramVec
	cached     *prometheus.CounterVec
}

// Buckets in seconds. Starts are between a warm claim on KVM and a cold boot on software
// emulation, stages between a cache hit and a long build.
var (
	bootBuckets  = []float64{.005, .01, .02, .03, .05, .075, .1, .15, .2, .3, .5, 1, 2, 3, 5, 10, 30, 60}
	stageBuckets = []float64{.005, .02, .1, .5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800}
)

// NewMetrics returns metrics of a program of that version in which nothing has happened.
func NewMetrics(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		boots: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kiln_boot_seconds", Buckets: bootBuckets,
			Help: "Time from the request for a sandbox to its daemon's first answer, by start path.",
		}, []string{"path", "template"}),
		notStarted: counters("kiln_start_failures_total", "Sandboxes that were admitted and did not start.", "template"),
		restarts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kiln_guest_restarts_total", Help: "Emulated guests that were started again because they did not come up.",
		}),
		refused: counters("kiln_admission_refused_total",
			"Sandboxes that were not admitted: 429, a limit on their number; 507, no memory to promise.", "status"),
		claims: counters("kiln_warm_claims_total", "Starts that could have used a warm slot: hit or miss.", "result", "template"),
		commands: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kiln_execs_total", Help: "Commands started in sandboxes by request.",
		}),
		builds:   counters("kiln_builds_total", "Builds that ended: ready, failed or cancelled.", "outcome"),
		failures: counters("kiln_build_failures_total", "Builds that failed, by stage and by whose fault it was: user or server.", "stage", "fault"),
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kiln_stage_seconds", Buckets: stageBuckets, Help: "Time that the stages of builds took, those found in the cache included.",
		}, []string{"stage", "cached"}),
		cached: counters("kiln_stage_cache_total", "Stages whose output was looked for: hit or miss.", "stage", "result"),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "kiln_build_info", Help: "1; the label is the program's version.", ConstLabels: prometheus.Labels{"version": version},
	})
	info.Set(1)
	m.registry.MustRegister(
		info, m.boots, m.notStarted, m.restarts, m.refused, m.claims, m.commands, m.builds, m.failures, m.stages, m.cached,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	m.showZeroes()
	return m
}

func counters(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

// showZeroes makes the series whose labels are known before anything happened, so that a
// rate is right from their first event on.
func (m *Metrics) showZeroes() {
	for _, status := range []string{statusLimit, statusExhausted} {
		m.refused.WithLabelValues(status)
	}
	for _, outcome := range []string{"ready", "failed", "cancelled"} {
		m.builds.WithLabelValues(outcome)
	}
	for _, stage := range kiln.Stages() {
		for _, fault := range []string{"user", "server"} {
			m.failures.WithLabelValues(string(stage), fault)
		}
	}
}

// Handler answers with all metrics in the format that the reader asks for. It answers 503 to
// more readers at once than there should be, so that they cannot busy the host.
func (m *Metrics) Handler(log *slog.Logger) http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		Registry: m.registry, ErrorLog: errorLog{log}, ErrorHandling: promhttp.ContinueOnError,
		MaxRequestsInFlight: 4, Timeout: readTimeout,
	})
}

// readTimeout bounds one reading.
const readTimeout = 30 * time.Second

type errorLog struct{ log *slog.Logger }

func (l errorLog) Println(v ...any) { l.log.Error("metrics", "error", v) }

// Started counts a sandbox that runs and how long it took until its daemon answered.
func (m *Metrics) Started(t *kiln.Template, path kiln.BootMode, took time.Duration) {
	m.boots.WithLabelValues(string(path), m.templates.of(t.OrgID, t.ID, t.Name)).Observe(took.Seconds())
}

// StartFailed counts a sandbox that was admitted and did not start.
func (m *Metrics) StartFailed(t *kiln.Template) {
	m.notStarted.WithLabelValues(m.templates.of(t.OrgID, t.ID, t.Name)).Inc()
}

// GuestRestarted counts a guest that was started again in its boot.
func (m *Metrics) GuestRestarted() { m.restarts.Inc() }

// HTTP statuses that a refusal is answered with.
const (
	statusLimit     = "429"
	statusExhausted = "507"
)

// Refused counts a sandbox that was not admitted. Errors for other reasons do not count.
func (m *Metrics) Refused(why error) {
	switch kiln.CodeOf(why) {
	case kiln.CodeLimit:
		m.refused.WithLabelValues(statusLimit).Inc()
	case kiln.CodeExhausted:
		m.refused.WithLabelValues(statusExhausted).Inc()
	}
}

// Claimed counts a start that found a warm slot, or none.
func (m *Metrics) Claimed(t *kiln.Template, hit bool) {
	m.claims.WithLabelValues(hitOrMiss(hit), m.templates.of(t.OrgID, t.ID, t.Name)).Inc()
}

// Command counts a command that somebody asked for in a sandbox.
func (m *Metrics) Command() { m.commands.Inc() }

// StageDone counts a stage that ended well.
func (m *Metrics) StageDone(r kiln.StageResult) {
	m.stages.WithLabelValues(string(r.Stage), map[bool]string{true: "true", false: "false"}[r.Cached]).Observe(r.Duration.Seconds())
	if r.Stage != kiln.StagePromote {
		m.cached.WithLabelValues(string(r.Stage), hitOrMiss(r.Cached)).Inc()
	}
}

// BuildReady counts a build that became a ready version.
func (m *Metrics) BuildReady() { m.builds.WithLabelValues("ready").Inc() }

// BuildCancelled counts a build that somebody stopped.
func (m *Metrics) BuildCancelled() { m.builds.WithLabelValues("cancelled").Inc() }

// BuildFailed counts a build that failed for good in a stage; ours says that it was not
// its user's fault.
func (m *Metrics) BuildFailed(stage kiln.Stage, ours bool) {
	m.builds.WithLabelValues("failed").Inc()
	m.failures.WithLabelValues(string(stage), map[bool]string{true: "server", false: "user"}[ours]).Inc()
}

func hitOrMiss(hit bool) string {
	if hit {
		return "hit"
	}
	return "miss"
}
