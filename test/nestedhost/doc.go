// Package nestedhost runs tests on a host that this machine may not be: one with KVM, with
// vhost-vsock and with control groups of version 2.
//
// That host is itself a virtual machine, on software emulation, of a CPU that can
// virtualise. It has the programs of Debian, the kernel that Kiln's guests have, and
// kiln-sandboxd as its first process, which carries out commands. The virtual machines
// in it run on KVM as they would on hardware, ten times more slowly.
//
//	this machine          nested host                          its virtual machines
//	go test ─► QEMU, TCG ─► Debian 12, kvm_amd, vhost_vsock ─► QEMU, KVM ─► guest
//	        compiled tests ─────►  run, and their output comes back
package nestedhost
