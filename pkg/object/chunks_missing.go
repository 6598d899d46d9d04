package object

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
)

const (
	// parallelStats is how many chunks are asked for at once.
	parallelStats = 16
	// listFrom is how many chunks are worth beginning to list for.
	listFrom = 256
	// listRatio is how many names of a list cost as much as asking for one object.
	listRatio = 16
)

// lister is a store whose lists are cheap: many names an answer.
type lister interface{ listsCheaply() }

// Missing returns those of ids that are not there to lean on, each once, in their
// order: they have to be Put. Those that are there stay young for a day.
func (c *Chunks) Missing(ctx context.Context, ids []ChunkID) ([]ChunkID, error) {
	there := make(map[ChunkID]bool, len(ids))
	var order []ChunkID
	for _, id := range ids {
		if _, seen := there[id]; !seen {
			there[id] = false
			order = append(order, id)
		}
	}
	infos, err := c.find(ctx, order)
	if err != nil {
		return nil, err
	}
	fresh := make([]bool, len(infos))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelStats)
	for i, info := range infos {
		g.Go(func() (err error) {
			fresh[i], err = c.refresh(gctx, info)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, info := range infos {
		id, _ := c.chunkID(info.Name)
		there[id] = fresh[i]
	}
	return slices.DeleteFunc(order, func(id ChunkID) bool { return there[id] }), nil
}

// find returns the objects of those ids that have one.
func (c *Chunks) find(ctx context.Context, ids []ChunkID) ([]Info, error) {
	sorted := slices.Clone(ids)
	slices.SortFunc(sorted, func(a, b ChunkID) int { return bytes.Compare(a[:], b[:]) })
	if _, cheap := c.store.(lister); !cheap || len(ids) < listFrom {
		return c.ask(ctx, sorted)
	}
	// Ids are spread evenly: one list for each first digit.
	const digits = 16
	found := make([][]Info, digits)
	g, gctx := errgroup.WithContext(ctx)
	for d := range digits {
		from := slices.IndexFunc(sorted, func(id ChunkID) bool { return int(id[0]>>4) >= d })
		to := slices.IndexFunc(sorted, func(id ChunkID) bool { return int(id[0]>>4) > d })
		if to < 0 {
			to = len(sorted)
		}
		if from < 0 || from >= to {
			continue
		}
		g.Go(func() (err error) {
			found[d], err = c.list(gctx, fmt.Sprintf("%x", d), sorted[from:to])
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return slices.Concat(found...), nil
}

// ask looks for each chunk by itself.
func (c *Chunks) ask(ctx context.Context, ids []ChunkID) ([]Info, error) {
	infos := make([]Info, len(ids))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelStats)
	for i, id := range ids {
		g.Go(func() (err error) {
			infos[i], err = c.store.Stat(gctx, c.name(id))
			if errors.Is(err, ErrNotFound) {
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(infos, func(i Info) bool { return i.Name == "" }), nil
}

// errTooMany ends a list that costs more than asking.
var errTooMany = errors.New("too many other chunks")

// list looks for chunks, of which ids in order are all of those that begin with
// digit, in a list of the store. Where that has too many others, it asks for the
// rest.
func (c *Chunks) list(ctx context.Context, digit string, ids []ChunkID) ([]Info, error) {
	var found []Info
	next, listed := 0, 0
	begin := strings.TrimPrefix(c.prefix+"/"+digit, "/")
	err := c.store.List(ctx, begin, func(o Info) error {
		id, ok := c.chunkID(o.Name)
		if !ok {
			return nil
		}
		for next < len(ids) && bytes.Compare(ids[next][:], id[:]) < 0 {
			next++
		}
		if next == len(ids) {
			return errTooMany
		}
		if ids[next] == id {
			found = append(found, o)
			next++
		}
		if listed++; listed > listRatio*(next+listFrom/4) {
			return errTooMany
		}
		return nil
	})
	if err == nil {
		return found, nil
	}
	if !errors.Is(err, errTooMany) {
		return nil, err
	}
	rest, err := c.ask(ctx, ids[next:])
	return append(found, rest...), err
}
