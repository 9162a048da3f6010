// Package snapshot makes golden snapshots: the saved VM of one template version at one
// size, from which sandboxes are cloned.
//
//	boot ──► configure ──► start_cmd, ready_cmd ──► rehearse, quiesce ──► pause ──► save ──► try out ──► keep
//
// What must hold for a snapshot that is kept:
//
//   - It was restored once, and its daemon answered and could use the disk.
//   - Memory, VM state and scratch disk are of one moment: the disk is copied while the
//     VM is paused. The base disk is read-only and never changes.
//   - No TCP connection was open, since its other end would not exist for any clone.
//   - Nothing in it belongs to a particular sandbox: identity is given after restore.
package snapshot
