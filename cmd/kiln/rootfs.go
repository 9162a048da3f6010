package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/cmd/kiln/server"
	"github.com/kilnvm/kiln/internal/rootfs"
)

func (a *app) rootfsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rootfs",
		Short: "Look into root filesystem images without mounting them",
		Long: `Look into root filesystem images without mounting them. IMAGE is a file, the digest
of a blob of the local server, or the name of a template on it.`,
	}
	cmd.AddCommand(a.rootfsList(), a.rootfsCat(), a.rootfsDiff(), a.rootfsStat())
	return cmd
}

// imagePath finds the file that an IMAGE argument means.
func (a *app) imagePath(ctx context.Context, image string) (string, error) {
	if _, err := os.Stat(image); err == nil || strings.ContainsRune(image, os.PathSeparator) {
		return image, nil
	}
	digest, err := kiln.ParseDigest(image)
	if err != nil {
		c, err := a.client()
		if err != nil {
			return "", err
		}
		t, err := c.GetTemplate(ctx, image)
		if err != nil {
			return "", err
		}
		if digest, err = kiln.ParseDigest(t.RootfsPath); err != nil {
			return "", kiln.Errorf(kiln.CodeConflict, "template %q has no root filesystem yet", image)
		}
	}
	file := server.BlobPath(a.localDataDir(), digest)
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return "", kiln.Errorf(kiln.CodeNotFound, "image %s is not in the local data directory %s", digest.Short(), a.localDataDir())
	}
	return file, nil
}

func (a *app) openImage(ctx context.Context, image string) (*rootfs.Image, error) {
	file, err := a.imagePath(ctx, image)
	if err != nil {
		return nil, err
	}
	im, err := rootfs.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, kiln.Errorf(kiln.CodeNotFound, "no such image: %s", image)
	}
	return im, err
}

// inImage returns a path as entries have it.
func inImage(p string) string {
	p = strings.TrimPrefix(path.Clean("/"+p), "/")
	if p == "" {
		return "."
	}
	return p
}

// entryFact is an entry for people and for JSON.
type entryFact struct {
	Path    string    `json:"path"`
	Type    string    `json:"type"`
	Mode    string    `json:"mode"`
	UID     uint32    `json:"uid"`
	GID     uint32    `json:"gid"`
	Size    int64     `json:"size"`
	ModTime time.Time `json:"mtime"`
	Target  string    `json:"target,omitempty"`
}

func factOf(e kiln.Entry) entryFact {
	return entryFact{
		Path: e.Path, Type: rootfs.TypeName(e.Type), Mode: fmt.Sprintf("%04o", e.Mode), UID: e.UID, GID: e.GID,
		Size: e.Size, ModTime: e.ModTime.UTC(), Target: e.Linkname,
	}
}

func (a *app) rootfsList() *cobra.Command {
	return &cobra.Command{
		Use: "ls IMAGE [PATH]", Short: "List a folder of an image", Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			im, err := a.openImage(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer im.Close()
			dir := "."
			if len(args) == 2 {
				dir = inImage(args[1])
			}
			entries, err := im.ReadDir(dir)
			if err != nil {
				return err
			}
			facts := make([]entryFact, 0, len(entries))
			for _, e := range entries {
				facts = append(facts, factOf(e))
			}
			if a.json() {
				return a.printJSON(facts)
			}
			rows := make([][]string, 0, len(facts))
			for _, f := range facts {
				name := path.Base(f.Path)
				if f.Target != "" {
					name += " -> " + f.Target
				}
				rows = append(rows, []string{f.Mode, f.Type, fmt.Sprintf("%d:%d", f.UID, f.GID), strconv.FormatInt(f.Size, 10), f.ModTime.Format(time.DateTime), name})
			}
			return table(a.stdout, rows)
		},
	}
}

func (a *app) rootfsCat() *cobra.Command {
	return &cobra.Command{
		Use: "cat IMAGE PATH", Short: "Print a file of an image", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			im, err := a.openImage(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer im.Close()
			if !a.json() {
				return im.Cat(inImage(args[1]), a.stdout)
			}
			var content bytes.Buffer
			if err := im.Cat(inImage(args[1]), &content); err != nil {
				return err
			}
			return a.printJSON(map[string][]byte{"content": content.Bytes()})
		},
	}
}

func (a *app) rootfsDiff() *cobra.Command {
	return &cobra.Command{
		Use: "diff IMAGE IMAGE", Short: "Show how two images differ; exit with 1 if they do", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var files [2]string
			for i, image := range args {
				var err error
				if files[i], err = a.imagePath(cmd.Context(), image); err != nil {
					return err
				}
			}
			differences, err := rootfs.Diff(cmd.Context(), files[0], files[1])
			if err != nil {
				return err
			}
			if a.json() {
				if differences == nil {
					differences = []rootfs.Difference{}
				}
				if err := a.printJSON(differences); err != nil {
					return err
				}
			} else {
				for _, d := range differences {
					fmt.Fprintln(a.stdout, d)
				}
			}
			if len(differences) > 0 {
				return silent{exitFailure}
			}
			return nil
		},
	}
}

func (a *app) rootfsStat() *cobra.Command {
	return &cobra.Command{
		Use: "stat IMAGE [PATH]", Short: "Show what an image, or one entry of it, is", Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			im, err := a.openImage(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer im.Close()
			if len(args) == 2 {
				e, err := im.Lookup(inImage(args[1]))
				if err != nil {
					return err
				}
				return a.printEntry(e)
			}
			info := im.Info()
			if a.json() {
				return a.printJSON(map[string]any{"size": im.Size(), "blocks": info.Blocks, "free_blocks": info.FreeBlocks,
					"inodes": info.Inodes - info.FreeInodes, "uuid": fmt.Sprintf("%x", info.UUID)})
			}
			return table(a.stdout, [][]string{
				{"size", mib(im.Size())}, {"blocks", strconv.FormatUint(info.Blocks, 10)}, {"free blocks", strconv.FormatUint(info.FreeBlocks, 10)},
				{"inodes used", strconv.FormatUint(uint64(info.Inodes-info.FreeInodes), 10)}, {"uuid", fmt.Sprintf("%x", info.UUID)},
			})
		},
	}
}

func (a *app) printEntry(e kiln.Entry) error {
	f := factOf(e)
	if a.json() {
		return a.printJSON(struct {
			entryFact
			Xattrs map[string]string `json:"xattrs,omitempty"`
		}{f, e.Xattrs})
	}
	rows := [][]string{
		{"path", f.Path}, {"type", f.Type}, {"mode", f.Mode}, {"owner", fmt.Sprintf("%d:%d", f.UID, f.GID)},
		{"size", strconv.FormatInt(f.Size, 10)}, {"modified", f.ModTime.Format(time.RFC3339Nano)},
	}
	if f.Target != "" {
		rows = append(rows, []string{"target", f.Target})
	}
	for name, value := range e.Xattrs {
		rows = append(rows, []string{"attribute " + name, fmt.Sprintf("%q", value)})
	}
	return table(a.stdout, rows)
}
