// Command pump runs inside a sandbox and moves bytes to or from a service outside:
//
//	pump up|down ADDRESS BYTES
//
// It prints how many were moved.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "pump:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("want a direction, an address and a number, have %d arguments", len(args))
	}
	left, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	conn, err := net.Dial("tcp4", args[1])
	if err != nil {
		return err
	}
	defer conn.Close()
	buf := make([]byte, 1<<20)
	if args[0] == "down" {
		n := 0
		for n < left {
			m, err := conn.Read(buf[:min(len(buf), left-n)])
			if err != nil {
				return err
			}
			n += m
		}
		fmt.Println(n)
		return nil
	}
	for ; left > 0; left -= len(buf) {
		if _, err := conn.Write(buf[:min(len(buf), left)]); err != nil {
			return err
		}
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, conn) // the service says how many arrived
	return err
}
