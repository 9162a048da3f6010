// Package server wires `kiln serve`: it takes a configuration and makes of the packages
// under internal/ one process that is control plane and node. It contains no logic of
// templates or sandboxes, only who is given to whom, in which order things start, and
// that everything ends.
package server
