// Tar2ext4 converts a tar archive with hcsshim's converter. It is only what the writer of
// Kiln is measured against, and a module of its own so that nothing else depends on it.
package main

import (
	"fmt"
	"os"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: tar2ext4 ARCHIVE IMAGE")
		os.Exit(2)
	}
	if err := convert(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "tar2ext4:", err)
		os.Exit(1)
	}
}

func convert(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	if err := tar2ext4.Convert(in, out, tar2ext4.MaximumDiskSize(64<<30)); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
