// Package qemu drives QEMU's microvm machine, on KVM or on software emulation (TCG).
//
// A machine that is to be captured keeps its memory in a shared file. QEMU's migration
// capability x-ignore-shared leaves that file out of the saved state, so that a capture
// writes some ten kilobytes, and a restore maps the file privately: it costs the same for
// any memory size, and each clone pays only for the pages that it changes.
//
// Everything between Kiln and QEMU is a descriptor that QEMU inherits: its monitor (QMP),
// the guest's channel and the console. Nothing has to appear in the file system before it
// can be used, nothing is left there, and nobody else can connect.
package qemu
