// Package bootstrap makes base images out of a distribution's package archive, for
// machines that no registry can be reached from.
//
// The packages are fetched, verified with the distribution's archive keys and installed
// by mmdebstrap. The result resembles the distribution's official image: the minimal
// package set with apt, package sources configured, no service started on installation,
// nothing of the machine it was made on. Made twice from the same state of the archive
// it is identical to the last byte.
package bootstrap
