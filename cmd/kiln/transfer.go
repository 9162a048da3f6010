package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/client"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/source"
)

func (a *app) sandboxUpload() *cobra.Command {
	return &cobra.Command{
		Use:   "upload ID LOCAL PATH",
		Short: "Copy a file or a folder into a sandbox, with modes and symlinks",
		Long: `Copy a file or a folder into a sandbox, with modes and symlinks. If PATH is an
existing folder or ends in '/', LOCAL is put into it. "-" as LOCAL reads standard input.
It is written with root's rights and belongs to the template's user; folders that exist
already keep their modes and owners. Folders need tar and id in the sandbox.`,
		Args: cobra.ExactArgs(3),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			g := c.Guest(args[0])
			defer g.Close()
			return whyGone(cmd.Context(), c, args[0], a.upload(cmd.Context(), g, args[1], args[2]))
		}),
	}
}

func (a *app) upload(ctx context.Context, g *guest.Client, local, remote string) error {
	if local == "-" {
		return g.WriteFile(ctx, remote, a.stdin)
	}
	info, err := os.Stat(local)
	if err != nil {
		return kiln.Errorf(kiln.CodeInvalid, "upload: %w", err)
	}
	target, err := remoteTarget(ctx, g, local, remote)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return a.uploadDir(ctx, g, local, target)
	}
	if !info.Mode().IsRegular() {
		return kiln.Errorf(kiln.CodeInvalid, "upload: %s is neither a file nor a folder", local)
	}
	file, err := os.Open(local)
	if err != nil {
		return kiln.Errorf(kiln.CodeInvalid, "upload: %w", err)
	}
	defer file.Close()
	shown := a.bar("upload", info.Size())
	defer shown.end()
	if err := g.WriteFile(ctx, target, shown.reader(file)); err != nil {
		return err
	}
	return a.setMode(ctx, g, target, info.Mode())
}

// setMode gives an uploaded file the mode it has here. A sandbox without chmod keeps the
// mode of new files, and the user is told.
func (a *app) setMode(ctx context.Context, g *guest.Client, target string, mode fs.FileMode) error {
	var stderr strings.Builder
	exit, err := g.Run(ctx, guest.Command{
		Args:   []string{"chmod", fmt.Sprintf("%04o", mode.Perm()), target},
		User:   transferUser,
		Stderr: &stderr,
	})
	if err != nil {
		return err
	}
	if exit.Code != 0 {
		fmt.Fprintf(a.stderr, "warning: the mode of %s was not set: %s\n", target, oneLine(stderr.String()))
	}
	return nil
}

// remoteTarget returns where local goes, as cp would decide it.
func remoteTarget(ctx context.Context, g *guest.Client, local, remote string) (string, error) {
	abs, err := filepath.Abs(local)
	if err != nil {
		return "", fmt.Errorf("upload: %w", err)
	}
	name := filepath.Base(abs)
	if strings.HasSuffix(remote, "/") {
		return path.Join(remote, name), nil
	}
	info, err := g.Stat(ctx, remote)
	switch {
	case kiln.CodeOf(err) == kiln.CodeNotFound && !errors.Is(err, guest.ErrGone):
		return remote, nil
	case err != nil:
		return "", err
	case info.IsDir():
		return path.Join(info.Path, name), nil
	}
	return remote, nil
}

// transferUser is who folders are read and written as: the daemon, which does it with single
// files, is root.
const transferUser = "root"

// idPattern matches what id prints of an account.
var idPattern = regexp.MustCompile(`^uid=(\d+)\S* gid=(\d+)`)

// fileOwner returns the account that new files belong to: that of the sandbox's commands.
func fileOwner(ctx context.Context, g *guest.Client) (uid, gid int, err error) {
	var stdout, stderr strings.Builder
	exit, err := g.Run(ctx, guest.Command{Args: []string{"id"}, Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		return 0, 0, err
	}
	m := idPattern.FindStringSubmatch(stdout.String())
	if exit.Code != 0 || m == nil {
		return 0, 0, kiln.Errorf(kiln.CodeInvalid, "upload: the sandbox's id, which folders need, failed with code %d: %s", exit.Code, oneLine(stderr.String())).
			WithHint("copy single files, or install coreutils or busybox in the template")
	}
	if uid, err = strconv.Atoi(m[1]); err != nil {
		return 0, 0, fmt.Errorf("upload: owner of files: %w", err)
	}
	if gid, err = strconv.Atoi(m[2]); err != nil {
		return 0, 0, fmt.Errorf("upload: owner of files: %w", err)
	}
	return uid, gid, nil
}

// uploadDir streams a folder as a tar archive to a tar in the sandbox.
func (a *app) uploadDir(ctx context.Context, g *guest.Client, local, target string) error {
	uid, gid, err := fileOwner(ctx, g)
	if err != nil {
		return err
	}
	if err := g.MkdirAll(ctx, target); err != nil {
		return err
	}
	shown := a.bar("upload", 0)
	defer shown.end()
	r, w := io.Pipe()
	defer r.Close() // ends packDir when the tar in the sandbox ends early
	packed := make(chan error, 1)
	go func() {
		err := packDir(ctx, local, w, uid, gid, func(name string) (bool, error) { return isFolder(ctx, g, path.Join(target, name)) })
		w.CloseWithError(err)
		packed <- err
	}()
	var stderr strings.Builder
	exit, err := g.Run(ctx, guest.Command{
		Args: []string{"tar", "-x", "-p", "-f", "-", "-C", target}, User: transferUser, Stdin: shown.reader(r), Stderr: &stderr,
	})
	if err != nil {
		return err
	}
	if exit.Code != 0 {
		return tarFailed("upload", exit, stderr.String())
	}
	r.Close() // what tar has not read is padding
	if err := <-packed; !errors.Is(err, io.ErrClosedPipe) {
		return err
	}
	return nil
}

// isFolder reports whether the sandbox has that folder already.
func isFolder(ctx context.Context, g *guest.Client, name string) (bool, error) {
	info, err := g.Stat(ctx, name)
	if kiln.CodeOf(err) == kiln.CodeNotFound && !errors.Is(err, guest.ErrGone) {
		return false, nil
	}
	return err == nil && info.IsDir(), err
}

func tarFailed(what string, exit guest.Exit, stderr string) error {
	if exit.Code == 127 {
		return kiln.Errorf(kiln.CodeInvalid, "%s: the sandbox has no tar, which folders need", what).WithHint("copy single files, or install tar in the template")
	}
	return kiln.Errorf(kiln.CodeInvalid, "%s: tar in the sandbox failed with code %d: %s", what, exit.Code, oneLine(stderr))
}

// packDir writes the content of dir as a tar archive of files that belong to uid and gid.
// Folders that exist where it goes have no entry, so that nothing about them changes.
func packDir(ctx context.Context, dir string, w io.Writer, uid, gid int, exists func(name string) (bool, error)) error {
	tw := tar.NewWriter(w)
	root, err := os.OpenRoot(dir)
	if err != nil {
		return kiln.Errorf(kiln.CodeInvalid, "upload: %w", err)
	}
	defer root.Close()
	existing := map[string]bool{".": true}
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || name == "." {
			return err
		}
		if d.IsDir() && existing[path.Dir(name)] {
			if existing[name], err = exists(name); err != nil || existing[name] {
				return err
			}
		}
		return packEntry(tw, root, name, uid, gid)
	})
	if err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	return tw.Close()
}

func packEntry(tw *tar.Writer, root *os.Root, name string, uid, gid int) error {
	info, err := root.Lstat(name)
	if err != nil {
		return err
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = root.Readlink(name); err != nil {
			return err
		}
	}
	hdr, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return nil // a socket: an archive cannot hold it
	}
	hdr.Name = name
	if info.IsDir() {
		hdr.Name += "/"
	}
	hdr.Uid, hdr.Gid, hdr.Uname, hdr.Gname = uid, gid, "", "" // accounts here mean nothing there
	if err := tw.WriteHeader(hdr); err != nil || !info.Mode().IsRegular() {
		return err
	}
	file, err := root.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.CopyN(tw, file, hdr.Size)
	return err
}

func (a *app) sandboxDownload() *cobra.Command {
	return &cobra.Command{
		Use:   "download ID PATH LOCAL",
		Short: "Copy a file or a folder out of a sandbox, with modes and symlinks",
		Long: `Copy a file or a folder out of a sandbox, with modes and symlinks. If LOCAL is an
existing folder, PATH is put into it. "-" as LOCAL writes to standard output. It is read
with root's rights. Folders need tar in the sandbox. Nothing is ever written outside LOCAL, whatever the sandbox sends.`,
		Args: cobra.ExactArgs(3),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			g := c.Guest(args[0])
			defer g.Close()
			return whyGone(cmd.Context(), c, args[0], a.download(cmd.Context(), g, args[1], args[2]))
		}),
	}
}

func (a *app) download(ctx context.Context, g *guest.Client, remote, local string) error {
	info, err := g.Stat(ctx, remote)
	if err != nil {
		return err
	}
	if local != "-" {
		if here, err := os.Stat(local); err == nil && here.IsDir() {
			local = filepath.Join(local, localName(info.Path))
		}
	}
	if info.IsDir() {
		if local == "-" {
			return usageError{kiln.Errorf(kiln.CodeInvalid, "download: %s is a folder and cannot go to standard output", remote)}
		}
		return a.downloadDir(ctx, g, info.Path, local)
	}
	content, err := g.ReadFile(ctx, remote)
	if err != nil {
		return err
	}
	defer content.Close()
	if local == "-" {
		_, err := io.Copy(a.stdout, content)
		return err
	}
	shown := a.bar("download", info.Size)
	defer shown.end()
	return saveFile(local, fs.FileMode(info.Mode).Perm(), shown.reader(content))
}

// localName is the last element of a guest's path, which could say anything.
func localName(remote string) string {
	name := path.Base(remote)
	if name == "." || name == "/" || name == ".." {
		return "root"
	}
	return name
}

// saveFile writes a file that appears only when it is whole.
func saveFile(name string, mode fs.FileMode, content io.Reader) (err error) {
	dir := filepath.Dir(name)
	file, err := os.CreateTemp(dir, ".kiln-download-")
	if err != nil {
		return kiln.Errorf(kiln.CodeInvalid, "download: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(file.Name())
		}
	}()
	_, err = io.Copy(file, content)
	if err == nil {
		err = file.Chmod(mode)
	}
	if cerr := file.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(file.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("download: %w", err)
	}
	return nil
}

// maxPadding is more than what tar adds to fill its last record, in bytes.
const maxPadding = 1 << 20

// downloadDir unpacks what a tar in the sandbox sends. The sandbox may send anything, so
// it goes through the same unpacker as build contexts, which leaves its folder never.
func (a *app) downloadDir(ctx context.Context, g *guest.Client, remote, local string) error {
	if err := os.Mkdir(local, 0o755); err != nil {
		return kiln.Errorf(kiln.CodeInvalid, "download: %w", err)
	}
	shown := a.bar("download", 0)
	defer shown.end()
	r, w := io.Pipe()
	unpacked := make(chan error, 1)
	go func() {
		err := source.Unpack(ctx, r, local, source.Limits{})
		if err == nil {
			_, err = io.Copy(io.Discard, io.LimitReader(r, maxPadding))
		}
		r.CloseWithError(err) // ends the tar in the sandbox, which writes for nobody
		unpacked <- err
	}()
	var stderr strings.Builder
	exit, err := g.Run(ctx, guest.Command{
		Args: []string{"tar", "-c", "-f", "-", "-C", remote, "."}, User: transferUser, Stdout: shown.writer(w), Stderr: &stderr,
	})
	if err == nil && exit.Code != 0 {
		err = tarFailed("download", exit, stderr.String())
	}
	w.CloseWithError(err)
	return errors.Join(err, <-unpacked)
}
