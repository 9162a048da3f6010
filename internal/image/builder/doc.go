// Package builder runs BuildKit in a child process.
//
// The child is this very program, started again ([Start]) with the first argument
// [ChildArg] in PID and mount namespaces of its own. Whatever a build starts or mounts
// lives in those namespaces and vanishes with the child, however it ends; the child ends
// when its parent does. No daemon, no socket in the file system.
//
// Parent and child share two inherited socket pairs. One carries BuildKit's gRPC API.
// Over the other ([handoff]) the child passes a descriptor of each finished root
// filesystem, mounted read-only, and keeps the mount until the parent releases it: no
// tar is written, and what cannot be told in a tar (nanoseconds, holes) survives.
package builder
