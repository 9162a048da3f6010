// Package client is the Go client of Kiln's REST API under /v1. It speaks in the types of
// package api and returns the server's errors as what they were there: a *kiln.Error, or
// a *kiln.BuildError.
//
// Commands and files of a sandbox go through the server to the daemon inside it, in the
// daemon's own protocol, so that bytes arrive unchanged: see [Client.Guest].
package client
