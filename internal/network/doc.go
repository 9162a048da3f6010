// Package network connects sandboxes to the world, each through a slot of its own, and
// holds every one of them to its egress policy.
//
//	guest ── tap0 ┌ namespace kiln-<i>-<n> ┐ up0 ── kiln<i>-<n> ┌ root namespace ┐ ── outside
//	   169.254.0.21 → .22                  NAT                   NAT, constant rules
//
// Inside a slot's namespace everything is the same for every sandbox: the guest's address,
// the gateway's address and MAC. Only the address of up0 is a slot's own, and all that
// leaves the namespace has it. Slots are prepared ahead in a [Pool], recorded in the store
// before they exist, lent to one owner at a time and used again.
//
// What a policy means is computed once, by compile, into a few sets of address ranges.
// [Decider] answers from them what would become of a packet; rules.go writes the same sets
// and the same order of questions as one nftables ruleset for the namespace, replaced in
// one transaction. A slot without owner has the ruleset that refuses everything, so
// whatever path starts a VM, its rules are there before it.
package network
