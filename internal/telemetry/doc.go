// Package telemetry lets others see how a server does: metrics in Prometheus' format and
// traces to an OpenTelemetry collector.
//
// Events are told to a [Metrics] by those in whose packages they happen, through small
// interfaces that those packages declare; the present state is asked from a [Host] when
// metrics are read. No label has more values than [MaxTemplates] and a few constants, however
// many templates, sandboxes and organisations there are.
package telemetry
