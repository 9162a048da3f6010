// Package ext4 writes and reads ext4 images of root filesystems without mounting them.
//
// [Write] makes a read-only image in one pass over the content of every file: no journal,
// no free space beyond what aligns data, metadata checksums on. docs/rootfs-format.md is
// its specification. The work goes through these steps, each of which keeps its records
// in sorters that spill to disk:
//
//	intake      entries as they come ──► sorted by path
//	tree        one node per path, missing directories made, hardlinks resolved
//	rank        nodes in the order of inodes and of data
//	plan        places of data, attributes, directories, then of everything
//	emit        the image from its first byte to its last, hashed on the way
//
// Nothing an entry says is ever used as a path of the host.
package ext4
