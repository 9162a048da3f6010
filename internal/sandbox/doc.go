// Package sandbox runs sandboxes: private clones of a template's golden snapshot.
//
// A sandbox lives through
//
//	             ┌── waking ◄── paused ◄──┐
//	             ▼                        │
//	creating ──► running ──────────────► pausing
//	    └───────────┴───────► stopping ──► deleted, failed
//
// A paused one is files and a row; whoever uses it next wakes it, even under another
// server. Any other one holds, while it lives, a row in the store, a folder with its
// scratch disk and sockets, a VM and a share of the host's memory. The row is written
// before anything else is acquired and says "ended" only after everything else has been
// released, so whatever moment a server dies in, its successor finds every leftover by
// the rows alone; see [Manager.Reconcile].
//
// There are two ways in ([Manager.Create] and [Manager.Fork]) and one way out (end, in end.go), whoever asks
// for it: the user, the time limit, a failed start, a VM that died, the server's stop.
package sandbox
