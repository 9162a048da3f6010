// Package git fetches build contexts from git repositories that nobody vouches for.
//
// The git program does it, with nothing but what is said here: no configuration of the
// host, no hooks, no submodules, no checkout, no terminal, and only the transports https,
// http and ssh. One commit is fetched into a bare repository below a private folder, its
// tree is listed, and the blobs are written straight into a tar archive, which is then
// unpacked under the same limits and checks as any uploaded context. A file's name, a
// symlink's target or an attribute in the repository never touches a path of the host.
//
// Credentials reach git through its environment (a token) or through files in memory that
// vanish with this process (an SSH key); they are on no command line and no disk.
package git
