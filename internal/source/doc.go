// Package source turns what a user has (a Dockerfile, a directory) into a [kiln.Source].
//
// On the client [Pack] writes the build context as a tar archive: only what .dockerignore
// leaves, in a fixed order and with fixed times, so that equal contexts are equal bytes.
// On the server [Unpack] writes such an archive (ours or anybody's) into an empty
// directory that nothing in the archive can lead out of, and [Open] reads the metadata
// file and computes the digest that names the source from then on.
//
// Which files belong to a context is decided in one place (walk) with the semantics of
// BuildKit, because a digest that covers other files than the build sees is a stale cache.
package source
