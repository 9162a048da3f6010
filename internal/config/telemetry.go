package config

import (
	"net/url"
)

// Metrics says where metrics may be read without a token.
type Metrics struct {
	// Listen is a further address, "HOST:PORT", that answers GET /metrics and nothing else;
	// empty means none.
	Listen string `toml:"listen"`
}

// Telemetry says where traces are sent.
type Telemetry struct {
	// Endpoint is the URL of an OpenTelemetry collector; empty means what the standard
	// environment variables OTEL_… say, and without those nowhere.
	Endpoint string `toml:"endpoint"`
	// Protocol is "http/protobuf" or "grpc"; empty means what OTEL_EXPORTER_OTLP_PROTOCOL
	// says, and without it "http/protobuf".
	Protocol string `toml:"protocol"`
}

func (c *Config) checkTelemetry() error {
	if c.Metrics.Listen != "" {
		if err := checkAddress("metrics.listen", c.Metrics.Listen); err != nil {
			return err
		}
	}
	if c.Telemetry.Endpoint != "" {
		u, err := url.Parse(c.Telemetry.Endpoint)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return invalid("telemetry.endpoint", "is not a URL like http://collector:4318")
		}
	}
	if c.Telemetry.Protocol == "" {
		return nil
	}
	return oneOf("telemetry.protocol", c.Telemetry.Protocol, "http/protobuf", "grpc")
}
