// Package rootfs turns the root filesystem of an image into a blob that a VM mounts: a
// deterministic read-only ext4 image (see docs/rootfs-format.md).
//
// Root filesystems come as entries: from a directory ([FromDir]), from a tar archive
// ([FromTar]) or from the layers of an image ([FromLayers]). Nothing is ever extracted:
// entries stream into package ext4, and no path in them is used as a path of the host.
package rootfs
