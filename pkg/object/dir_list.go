package object

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
)

// List calls fn with the objects whose names begin with prefix. Links are not
// followed.
func (d *Dir) List(ctx context.Context, prefix string, fn func(Info) error) error {
	if err := checkPrefix(prefix); err != nil {
		return err
	}
	root, err := d.open()
	if errors.Is(err, fs.ErrNotExist) {
		return ctx.Err()
	}
	if err != nil {
		return dirError(err, d.path)
	}
	return listTree(ctx, rootTree{root}, path.Dir(prefix+"x"), prefix, fn)
}

// tree is what listTree walks.
type tree interface {
	// entries returns what is in a folder, with names that are not whole paths;
	// none for a folder that is not there.
	entries(ctx context.Context, dir string) ([]fs.FileInfo, error)
	// ahead is how many folders are worth asking for before their turn.
	ahead() int
}

// listTree lists the files under dir whose paths begin with prefix, in the order
// of the bytes of their whole paths: a folder comes where its name and a slash
// stand, "a.b" before "a/b".
func listTree(ctx context.Context, t tree, dir, prefix string, fn func(Info) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // of what was asked for in vain
	w := &walk{t, prefix, fn}
	return w.folder(ctx, dir, w.ask(ctx, dir))
}

type walk struct {
	tree
	prefix string
	fn     func(Info) error
}

// entriesOf gives a folder's entries when they are there.
type entriesOf func() ([]fs.FileInfo, error)

// ask asks for a folder's entries, at once if others are asked for meanwhile.
func (w *walk) ask(ctx context.Context, dir string) entriesOf {
	if w.ahead() == 0 {
		return func() ([]fs.FileInfo, error) { return w.entries(ctx, dir) }
	}
	var infos []fs.FileInfo
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		infos, err = w.entries(ctx, dir)
	}()
	return func() ([]fs.FileInfo, error) {
		<-done
		return infos, err
	}
}

// folder lists what is in a folder and under it.
func (w *walk) folder(ctx context.Context, dir string, get entriesOf) error {
	entries, err := get()
	if err != nil {
		return err
	}
	entries = slices.DeleteFunc(entries, func(e fs.FileInfo) bool { return !w.wants(dir, e) })
	slices.SortFunc(entries, func(a, b fs.FileInfo) int { return strings.Compare(listKey(a), listKey(b)) })
	asked := map[int]entriesOf{}
	next := 0 // not looked at for asking
	for i, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		for ; next < len(entries) && (next <= i || len(asked) < w.ahead()); next++ {
			if entries[next].IsDir() {
				asked[next] = w.ask(ctx, path.Join(dir, entries[next].Name()))
			}
		}
		name := path.Join(dir, e.Name())
		if e.IsDir() {
			err = w.folder(ctx, name, asked[i])
			delete(asked, i)
		} else {
			err = w.fn(dirInfo(name, e))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// listKey is what an entry is put in order by.
func listKey(e fs.FileInfo) string {
	if e.IsDir() {
		return e.Name() + "/"
	}
	return e.Name()
}

// wants says whether an entry of dir is an object to list, or may have some.
func (w *walk) wants(dir string, e fs.FileInfo) bool {
	name := path.Join(dir, e.Name())
	switch {
	case CheckName(name) != nil: // nobody's object
		return false
	case e.IsDir():
		return strings.HasPrefix(name+"/", w.prefix) || strings.HasPrefix(w.prefix, name+"/")
	}
	return e.Mode().IsRegular() && strings.HasPrefix(name, w.prefix)
}

type rootTree struct{ root *os.Root }

// ahead: a local folder is read in no time.
func (t rootTree) ahead() int { return 0 }

func (t rootTree) entries(_ context.Context, dir string) ([]fs.FileInfo, error) {
	if st, err := t.root.Lstat(dir); err == nil && !st.IsDir() {
		return nil, nil
	}
	f, err := t.root.Open(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, dirError(err, dir)
	}
	defer f.Close()
	names, err := f.ReadDir(-1)
	if err != nil {
		return nil, dirError(err, dir)
	}
	infos := make([]fs.FileInfo, 0, len(names))
	for _, e := range names {
		st, err := t.root.Lstat(path.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) { // deleted meanwhile
			continue
		}
		if err != nil {
			return nil, dirError(err, path.Join(dir, e.Name()))
		}
		infos = append(infos, st)
	}
	return infos, nil
}
