// Package base finds out which content a FROM line means and makes it available on the
// local disk.
//
// Every base image of a build ends up as content of an OCI image layout (a folder of
// blobs and an index.json, OCI image-layout 1.0.0), whatever it came from:
//
//	layout     a layout that the user gave, or an earlier download
//	registry   downloaded into the [Store], with Docker's credentials and mirrors
//	bootstrap  made out of a distribution's package archive, into the [Store]
//
// so that a build knows its bases by digest before it starts and needs no registry.
// Only linux/amd64 is supported; images for anything else are refused by name.
package base
