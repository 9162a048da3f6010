// Package pipeline runs the stages of builds, source → image → rootfs → snapshot →
// promote, and is the only place that knows their order.
//
// # What is rebuilt
//
// A stage computes a key over its inputs and is skipped if its output for that key is at
// hand. Image and rootfs are one step in this respect: nobody reads an image twice, so if
// the root filesystem of an image is there no image is built. A rebuild that would change
// nothing is found out while the request waits, and makes no version.
//
// # What survives
//
// A request writes its source as a blob, then in one transaction the version (pending)
// and a job on the queue, which lives in the same database. The version's status says who
// may do what: a worker must turn pending into building to start, so of any number of
// jobs for one build one runs. A server that starts again puts every build that it had
// not ended back to pending, and builds that keep killing the server fail. Promotion is
// the last step and one transaction.
//
// A user's mistake (a *kiln.BuildError) ends a build; a fault of ours is tried again a few
// times. Either way the version that was promoted before keeps serving.
package pipeline
