// Package api is Kiln's REST interface under /v1, described by OpenAPI 3.1 at
// /openapi.json. Routes and fields are those that PandaStack's published client uses;
// where Kiln has more, there are more of them.
//
// The package knows neither VMs nor builds. It declares what it needs ([Templates],
// [Sandboxes], [Guest], [Authenticator]) in terms of the domain, checks and translates
// requests, and turns a [kiln.ErrorCode] into an HTTP status in one place.
package api
