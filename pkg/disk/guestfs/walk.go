package guestfs

import (
	"context"
	"fmt"
	"io/fs"
	"strings"
)

// walk follows path from the root, and the links on its way. Neither .. nor an
// absolute link leads out: above the root is the root. It returns the node and
// the path that led to it in the end.
func (f *FS) walk(ctx context.Context, path string) (node, string, error) {
	if len(path) > maxPath {
		return nil, "", fmt.Errorf("%w: a path of %d characters", ErrTooLarge, len(path))
	}
	root, err := f.root(ctx)
	if err != nil {
		return nil, "", err
	}
	way, names := []node{root}, []string{}
	todo := strings.Split(path, "/")
	links, steps := 0, 0
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			way, names = way[:max(1, len(way)-1)], names[:max(0, len(names)-1)]
			continue
		}
		if steps++; steps > maxSteps {
			return nil, "", fmt.Errorf("%w: more than %d names on the way", ErrTooLarge, maxSteps)
		}
		if err := ctx.Err(); err != nil {
			return nil, "", err
		}
		n, err := child(ctx, way[len(way)-1], name)
		if err != nil {
			return nil, "", err
		}
		if n.kind() != symlink {
			way, names = append(way, n), append(names, name)
			continue
		}
		if links++; links > maxLinks {
			return nil, "", fmt.Errorf("%w: more than %d symbolic links on the way", ErrTooLarge, maxLinks)
		}
		to, err := n.target(ctx)
		if err != nil {
			return nil, "", err
		}
		if strings.HasPrefix(to, "/") {
			way, names = way[:1], names[:0]
		}
		todo = append(strings.Split(to, "/"), todo...)
	}
	return way[len(way)-1], "/" + strings.Join(names, "/"), nil
}

func child(ctx context.Context, dir node, name string) (node, error) {
	if dir.kind() != directory || len(name) > maxName {
		return nil, fs.ErrNotExist
	}
	return dir.lookup(ctx, name)
}
