// Package gc removes what nothing refers to any more: versions beyond the policy, their
// snapshots, entries of the stage cache, blobs, build logs, and the rows of sandboxes that
// ended long ago.
//
// The database decides. A version is given up in one transaction, which fails if a sandbox,
// a tag or a promotion has claimed it meanwhile; and none can claim it afterwards. Rows go
// before files, so a crash leaves files that nobody refers to, for the next run. A blob that
// a build, a bake or a start is just taking, and that no row mentions yet, is spared by the
// hold under which it is taken (see package artifact).
package gc
