// Package kiln is the domain of Kiln: self-hosted microVM sandboxes that start in
// milliseconds, because everything slow happened once, when their template was fired.
//
// The package holds types and rules only. It does no I/O and imports nothing but the
// standard library; everything that touches a disk, a process or a network lives in
// internal/ and speaks to its neighbours in the types declared here.
//
// # Life of a template
//
//	source ──► image ──► rootfs ──► snapshot (one per VM size) ──► sandbox, sandbox, …
//	git, dir,  BuildKit  entries    boot, wait until ready,         warm slot │ restore │ cold boot
//	archive    (in a     ─► ext4,   run ready_cmd, quiesce,
//	           child)    no mount   pause, save
//
// Every arrow is a [Stage]: a function of content-addressed inputs to one
// content-addressed output. A stage first computes its key (see [KeyBuilder]); if the
// artifact for that key exists it is reused. Nothing else decides what is rebuilt.
//
// A [Template] is a named recipe. Each build of it is a [Version], whose life is
// pending → building → ready | failed. A ready version owns a root filesystem and, per
// [Size], a [Snapshot]. A [Sandbox] is a running private clone of one snapshot.
package kiln
