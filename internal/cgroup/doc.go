// Package cgroup bounds what a virtual machine takes from its host, through control groups
// of version 1 or 2, whichever the host manages its processes with.
//
// A server has one [Tree] per kind of machine,
//
//	<mount>/kiln/<server>/<kind>/<machine>
//
// and every machine a group in it that bears the machine's name. Whoever makes a group has
// recorded that name before, so a server that died is cleaned up after by [Tree.List] and
// [Tree.Remove]: what no living machine bears the name of is a leftover.
package cgroup
