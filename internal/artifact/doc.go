// Package artifact keeps blobs: immutable files named by the SHA-256 of their content.
//
//	<dir>/sha256/ab/abcdef…   blobs, mode 0400, sparse where their content is
//	<dir>/tmp/                what is being written; emptied by Open
//
// A blob comes into being in this order, so that a crash at any point leaves it whole or
// absent: the data is written to a temporary name, synced, renamed to its digest, and the
// folder is synced. Whoever makes a row in the database that refers to it does so after.
package artifact
