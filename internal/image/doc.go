// Package image is the stage that turns a Dockerfile into a root filesystem.
//
//	Resolve   which contents do the FROM lines mean? Bases become local   (package base)
//	Key       everything the image depends on
//	Build     BuildKit runs the Dockerfile                                (package builder)
//	          the mounted result is read by descriptor                    (Options.Walk)
//
// By default BuildKit runs in a child process that lives as long as builds need it; with
// Options.Address an existing BuildKit daemon or Docker Engine does the work and sends
// the result as a tar stream. Progress looks like that of docker build. What the user
// did wrong comes back as a *kiln.BuildError with the line of the Dockerfile.
//
// Only this package and those below it import BuildKit.
package image
