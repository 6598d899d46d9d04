package object

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// cache keeps chunks of a store that is far away in a directory of this host, in
// the same layout, those that were used last. Nothing in it has to last or to be
// right: what is read from it is verified, and fetched again where it is not.
// Several processes may share it.
type cache struct {
	dir   string
	limit int64 // bytes

	mu    sync.Mutex
	room  int64 // that may be filled before looking what there is
	known bool  // whether room was found out
}

// Cached returns the same chunks, which are read through a cache in a directory of
// this host, of at most limit bytes, and written to the store and the cache. Each
// process that shares the directory may overstep the limit by a sixteenth.
func (c *Chunks) Cached(dir string, limit int64) (*Chunks, error) {
	if limit <= 0 {
		return nil, fmt.Errorf("a cache of %d bytes keeps nothing", limit)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, dirError(err, dir)
	}
	with := *c
	with.cache = &cache{dir: dir, limit: limit}
	return &with, nil
}

// cached is Get through the cache.
func (c *Chunks) cached(ctx context.Context, id ChunkID) ([]byte, error) {
	done, err := c.begin(ctx, id)
	if err != nil {
		return nil, err
	}
	defer done()
	if packed := c.cache.get(id); packed != nil {
		if plain, err := c.unpack(id, packed); err == nil {
			return plain, nil
		}
		c.cache.drop(id)
	}
	packed, plain, err := c.fetch(ctx, id)
	if err == nil {
		c.cache.put(id, packed)
	}
	return plain, err
}

func (c *cache) path(id ChunkID) string {
	hex := id.String()
	return filepath.Join(c.dir, hex[:4], hex+chunkSuffix)
}

// get returns what is kept of a chunk, nil for nothing.
func (c *cache) get(id ChunkID) []byte {
	path := c.path(id)
	st, err := os.Lstat(path)
	if err != nil || !st.Mode().IsRegular() || st.Size() > MaxChunk {
		return nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	if now := time.Now(); now.Sub(st.ModTime()) > time.Minute { // when it was used last, roughly
		os.Chtimes(path, now, now) //nolint:errcheck // another process has just dropped it
	}
	return b
}

func (c *cache) drop(id ChunkID) { os.Remove(c.path(id)) }

// put keeps a chunk. A cache that cannot keep it, for want of room say, is no
// reason to fail.
func (c *cache) put(id ChunkID, packed []byte) {
	size := int64(len(packed))
	if size > c.limit/16 || !c.makeRoom(size) {
		return
	}
	dir := filepath.Dir(c.path(id))
	if os.MkdirAll(dir, 0o700) != nil {
		return
	}
	f, err := os.CreateTemp(dir, cacheTemp+"*")
	if err != nil {
		return
	}
	_, err = f.Write(packed)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), c.path(id))
	}
	if err != nil {
		os.Remove(f.Name())
	}
}

// cacheTemp begins the name of what is not whole yet.
const cacheTemp = ".tmp-"

// makeRoom takes size bytes of the room, looks for more when it is used up, and
// says whether there is that much.
func (c *cache) makeRoom(size int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.known || c.room < size {
		used, err := c.evict(c.limit - c.limit/16)
		if err != nil {
			return false
		}
		c.known = true
		// Others fill it too: no more than this without looking again.
		c.room = min(c.limit-used, c.limit/16)
	}
	if c.room < size {
		return false
	}
	c.room -= size
	return true
}

// evict removes what was not used for longest, where there is more than most
// bytes, down to seven eighths of that. It returns how many there are then.
func (c *cache) evict(most int64) (int64, error) {
	type entry struct {
		path string
		size int64
		used time.Time
	}
	var all []entry
	var total int64
	err := filepath.WalkDir(c.dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		name := d.Name()
		temp := strings.HasPrefix(name, cacheTemp)
		if !temp && !strings.HasSuffix(name, chunkSuffix) { // not ours
			return nil
		}
		st, err := d.Info()
		if err != nil {
			return nil //nolint:nilerr // gone meanwhile
		}
		if temp && time.Since(st.ModTime()) > time.Hour {
			os.Remove(path) // of a process that was killed
			return nil
		}
		all = append(all, entry{path, st.Size(), st.ModTime()})
		total += st.Size()
		return nil
	})
	if err != nil {
		return math.MaxInt64, err
	}
	if total <= most {
		return total, nil
	}
	slices.SortFunc(all, func(a, b entry) int {
		return cmp.Or(a.used.Compare(b.used), strings.Compare(a.path, b.path))
	})
	for _, e := range all {
		if total <= most-most/8 {
			break
		}
		if os.Remove(e.path) == nil {
			total -= e.size
		}
	}
	return total, nil
}
