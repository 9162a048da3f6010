// Package sandboxd is the daemon inside a sandbox: it runs commands, serves files and takes
// the sandbox's identity from the host after each restore.
//
// It speaks plain HTTP/1.1 on whatever listener it is given. Commands and file management
// are the Connect services of package guestapi; file content, health, environment and
// metrics are REST. Everything that an E2B client asks of its daemon is answered the same
// way here. Three more endpoints are for the host alone, and its proxy must refuse them to
// others:
//
//	POST /init       identity and defaults, before a capture and after every restore
//	POST /quiesce    make the machine fit for a capture
//	POST /shutdown   end everything in order
//
// What would touch the whole machine goes through [System], so that the daemon can be
// tested on a machine that must stay as it is. The package is compiled into the guest: it
// imports nothing of the host's side.
package sandboxd
