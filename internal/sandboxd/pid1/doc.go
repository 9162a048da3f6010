// Package pid1 makes kiln-sandboxd the init of a VM: it starts as /init of an initramfs
// next to the kernel modules that the VM's devices need, and ends as process 1 of the
// template's root filesystem.
//
//	initramfs   mount /proc /sys /dev, check the CPUs' timers, load modules, wait for the two disks
//	root        read-only disk below, writable disk above, joined by overlayfs; move into it
//	system      pseudo file systems, loopback, host name, homes of users
//	serve       find the channel to the host and hand it to the daemon
//	systemd     or, if the template asks for it, become the image's systemd, with the daemon
//	            as one of its services
//	shutdown    end all processes, flush and seal the disk, stop the VM
//
// Nothing that the template's image contains is trusted to be what its name says. A
// mount point may be missing or be a symbolic link, /etc/passwd may be a FIFO, there may
// be no shell: what is needed is made anew in the writable layer or done without, and the
// daemon comes up. What cannot be done without (a disk, overlayfs) stops the VM with a
// message on its console.
package pid1
