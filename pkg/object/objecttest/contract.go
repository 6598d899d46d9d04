package objecttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/object"
)

func address(t *testing.T, open func() object.Store) {
	s := open()
	if u := s.URL(); !strings.Contains(u, "://") || strings.Contains(strings.ToLower(u), "secret") {
		t.Errorf("URL: got %q", u)
	}
	if a, b := s.URL(), open().URL(); a != b {
		t.Errorf("URL: got %q and %q for one store", a, b)
	}
}

// sizes come by the limits of blocks, buffers and parts (5 MiB).
func sizes() []int {
	return []int{0, 1, 4095, 65536, 1<<20 + 1, 5 << 20, 5<<20 + 1, 17<<20 + 3}
}

func roundTrip(t *testing.T, open func() object.Store) {
	s, again := open(), open()
	start := time.Now().Add(-time.Hour) // clocks differ
	for i, size := range sizes() {
		b, name := noise(i, size), fmt.Sprintf("o/%d", size)
		r := io.ReadSeeker(bytes.NewReader(b))
		if i%2 == 1 {
			r = seeker{r}
		}
		must(t, s.Put(t.Context(), name, r, int64(size)))
		want(t, again, name, b)
		info, err := again.Stat(t.Context(), name)
		if err != nil || info.Name != name || info.Size != int64(size) || info.Modified.Before(start) {
			t.Errorf("Stat(%s): got %+v, %v", name, info, err)
		}
		body, of, err := s.Get(t.Context(), name)
		must(t, err)
		if of.Name != info.Name || of.Size != info.Size || of.Modified.Unix() != info.Modified.Unix() {
			t.Errorf("Get(%s): got %+v, want %+v as Stat says", name, of, info)
		}
		must(t, body.Close()) // unread
	}
}

func names(t *testing.T, open func() object.Store) {
	s := open()
	all := []string{
		"a", "a b/c+d/e%20f", "deep/er/and/deep/er", "ünï/cödé/名前", "quo'te\"s", "q?x=1&y=#2", "tilde~/-dash", "..dots/...", ".hidden/.x",
		"back\\slash", "star*[1]{2}", strings.Repeat("n", 255), strings.Repeat("long/", 100) + "name", "0000/" + strings.Repeat("ab", 32) + ".cacnk",
	}
	for i, name := range all {
		put(t, s, name, noise(i, 10+i))
	}
	for i, name := range all {
		want(t, s, name, noise(i, 10+i))
	}
	slices.Sort(all)
	wantList(t, s, "", all...)
}

func badNames(t *testing.T, open func() object.Store) {
	ctx, s := t.Context(), open()
	for _, name := range []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "./a", "a/.", "a/./b", "a\x00b", "a\nb", "a\xffb",
		strings.Repeat("n", 256), strings.Repeat("n/", 512) + "n", ".kami", ".kami/a",
	} {
		err := s.Put(ctx, name, strings.NewReader("x"), 1)
		errNew := s.PutNew(ctx, name, strings.NewReader("x"), 1)
		_, _, errGet := s.Get(ctx, name)
		_, errStat := s.Stat(ctx, name)
		for op, err := range map[string]error{"Put": err, "PutNew": errNew, "Get": errGet, "Stat": errStat, "Delete": s.Delete(ctx, name)} {
			if !errors.Is(err, object.ErrBadName) {
				t.Errorf("%s(%.60q): got %v, want ErrBadName", op, name, err)
			}
		}
	}
	for _, prefix := range []string{"/", "../", "a//b", "a/../"} {
		if err := s.List(ctx, prefix, func(object.Info) error { return nil }); !errors.Is(err, object.ErrBadName) {
			t.Errorf("List(%q): got %v, want ErrBadName", prefix, err)
		}
	}
	wantList(t, s, "")
}

func replaces(t *testing.T, open func() object.Store) {
	s := open()
	for i, size := range []int{100, 6 << 20, 3, 0, 50} {
		put(t, s, "x/y", noise(i, size))
		want(t, s, "x/y", noise(i, size))
	}
	wantList(t, s, "", "x/y")
}

func fromBeginning(t *testing.T, open func() object.Store) {
	s, b := open(), noise(1, 6<<20)
	for i, r := range []io.ReadSeeker{bytes.NewReader(b), seeker{bytes.NewReader(b)}} {
		for _, size := range []int{len(b), 1000} { // what is after size is no part of it
			_, err := r.Seek(500, io.SeekStart)
			must(t, err)
			name := fmt.Sprint(i, size)
			must(t, s.Put(t.Context(), name, r, int64(size)))
			want(t, s, name, b[:size])
		}
	}
}

func wholeOrNot(t *testing.T, open func() object.Store) {
	ctx, s := t.Context(), open()
	old := noise(1, 1000)
	put(t, s, "old", old)
	sad := errors.New("a sad reader")
	for _, size := range []int{100_000, 12 << 20} {
		b := noise(2, size)
		for _, name := range []string{"old", "new"} {
			err := s.Put(ctx, name, &faulty{bytes.NewReader(b), size / 2, sad}, int64(size))
			if !errors.Is(err, sad) {
				t.Errorf("Put from a reader that fails: got %v, want its error", err)
			}
			err = s.Put(ctx, name, seeker{&faulty{bytes.NewReader(b), size / 2, sad}}, int64(size))
			if !errors.Is(err, sad) {
				t.Errorf("Put from a seeker that fails: got %v, want its error", err)
			}
			err = s.Put(ctx, name, bytes.NewReader(b[:size-1]), int64(size))
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("Put of one byte more than there is: got %v, want io.ErrUnexpectedEOF", err)
			}
		}
	}
	want(t, s, "old", old)
	wantAbsent(t, s, "new")
	wantList(t, s, "", "old")
}

func putNew(t *testing.T, open func() object.Store) {
	ctx, s := t.Context(), open()
	for _, size := range []int{10, 6 << 20} {
		b, name := noise(1, size), fmt.Sprint("new/", size)
		must(t, s.PutNew(ctx, name, bytes.NewReader(b), int64(size)))
		err := s.PutNew(ctx, name, bytes.NewReader(noise(2, size)), int64(size))
		if !errors.Is(err, object.ErrExists) {
			t.Errorf("PutNew of a name that is taken: got %v, want ErrExists", err)
		}
		want(t, s, name, b)
		must(t, s.Delete(ctx, name))
		must(t, s.PutNew(ctx, name, bytes.NewReader(b[:5]), 5))
		want(t, s, name, b[:5])
	}
}

func putNewRace(t *testing.T, open func() object.Store) {
	const writers = 8
	for _, size := range []int{1000, 5<<20 + 1} {
		name := fmt.Sprint("race/", size)
		var wg sync.WaitGroup
		var won atomic.Int32
		winner := make([]byte, 0)
		for w := range writers {
			wg.Add(1)
			go func() {
				defer wg.Done()
				b := noise(w, size)
				s := open()
				err := s.PutNew(t.Context(), name, bytes.NewReader(b), int64(size))
				switch {
				case err == nil:
					won.Add(1)
					winner = b
				case !errors.Is(err, object.ErrExists):
					t.Errorf("PutNew beside others: got %v, want ErrExists", err)
				}
			}()
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Fatalf("%d of %d writers of %d bytes made the object, want 1", won.Load(), writers, size)
		}
		want(t, open(), name, winner)
	}
}

func notFound(t *testing.T, open func() object.Store) {
	s := open()
	put(t, s, "a/b/c", noise(1, 10))
	for _, name := range []string{"x", "x/y", "a", "a/b", "a/b/d", "a/b/c/d", "a/b/c/d/e", "a/b/cc"} {
		start := time.Now()
		wantAbsent(t, s, name)
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("%s: to find nothing took %s, want it at once", name, d)
		}
	}
}

func list(t *testing.T, open func() object.Store) {
	s := open()
	wantList(t, s, "")
	wantList(t, s, "none/")
	all := []string{"a", "ab", "b-c", "b.c", "b/c", "b/c2/d", "b/d", "b0", "ba/x", "c/d/e/f", "ü"}
	for i, name := range slices.Backward(all) {
		put(t, s, name, noise(i, i))
	}
	wantList(t, s, "", all...)
	wantList(t, s, "b", "b-c", "b.c", "b/c", "b/c2/d", "b/d", "b0", "ba/x")
	wantList(t, s, "b/", "b/c", "b/c2/d", "b/d")
	wantList(t, s, "b/c", "b/c", "b/c2/d")
	wantList(t, s, "b/c2/", "b/c2/d")
	wantList(t, s, "c/d/e/f", "c/d/e/f")
	wantList(t, s, "c/d/e/f/")
	wantList(t, s, "a", "a", "ab")
	wantList(t, s, "nothing")
	var many []string
	for i := range 1203 { // more than a page of S3
		many = append(many, fmt.Sprintf("many/%04d", i))
	}
	var wg sync.WaitGroup
	for part := range slices.Chunk(many, 101) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for _, name := range part {
				put(t, s, name, []byte("x"))
			}
		}()
	}
	wg.Wait()
	wantList(t, s, "many/", many...)
	err := s.List(t.Context(), "", func(o object.Info) error {
		if i := slices.Index(all, o.Name); i >= 0 && (o.Size != int64(i) || time.Since(o.Modified).Abs() > time.Hour) {
			t.Errorf("List: got %+v, want %d bytes", o, i)
		}
		return nil
	})
	must(t, err)
}

func listError(t *testing.T, open func() object.Store) {
	s := open()
	for _, name := range []string{"a", "b/c", "d"} {
		put(t, s, name, nil)
	}
	enough, seen := errors.New("enough"), 0
	err := s.List(t.Context(), "", func(object.Info) error {
		if seen++; seen == 2 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || seen != 2 {
		t.Errorf("List: got %v after %d, want the function's error after 2", err, seen)
	}
	// It may change what it lists.
	must(t, s.List(t.Context(), "", func(o object.Info) error { return s.Delete(t.Context(), o.Name) }))
	wantList(t, s, "")
}

func remove(t *testing.T, open func() object.Store) {
	ctx, s := t.Context(), open()
	put(t, s, "a/b", noise(1, 10))
	put(t, s, "a/c", noise(1, 10))
	for range 2 {
		must(t, s.Delete(ctx, "a/b"))
		wantAbsent(t, s, "a/b")
	}
	must(t, s.Delete(ctx, "never/was"))
	must(t, s.Delete(ctx, "a")) // a folder is no object
	want(t, s, "a/c", noise(1, 10))
	must(t, s.Delete(ctx, "a/c/d"))
	wantList(t, s, "", "a/c")
}

func freeAgain(t *testing.T, open func() object.Store) {
	ctx, s := t.Context(), open()
	put(t, s, "a/b/c", noise(1, 10))
	must(t, s.Delete(ctx, "a/b/c"))
	put(t, s, "a", noise(2, 20))
	want(t, s, "a", noise(2, 20))
	must(t, s.Delete(ctx, "a"))
	must(t, s.PutNew(ctx, "a/b/c", bytes.NewReader(nil), 0))
	wantList(t, s, "", "a/b/c")
}

func folders(t *testing.T, open func() object.Store) {
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			s := open()
			for i := range 25 {
				name := fmt.Sprintf("one/folder/%d-%d", w, i)
				put(t, s, name, noise(i, 10))
				want(t, s, name, noise(i, 10))
				if err := s.Delete(t.Context(), name); err != nil {
					t.Errorf("Delete(%s): %v", name, err)
				}
			}
		}()
	}
	wg.Wait()
	wantList(t, open(), "")
}

func concurrent(t *testing.T, open func() object.Store) {
	shared := open()
	var wg sync.WaitGroup
	for w := range 8 {
		s := shared
		if w%2 == 1 {
			s = open()
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range 6 {
				name := fmt.Sprintf("w%d/%d", w, i)
				put(t, s, name, noise(w, 10_000*i))
				want(t, s, name, noise(w, 10_000*i))
				want(t, shared, fmt.Sprintf("w%d/0", w), nil)
			}
		}()
	}
	wg.Wait()
	if n := len(listed(t, shared, "w")); n != 48 {
		t.Errorf("got %d objects, want 48", n)
	}
}

func replacedWhileRead(t *testing.T, open func() object.Store) {
	s, other := open(), open()
	const size = 300_000
	put(t, s, "x", noise(0, size))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for i := 1; ctx.Err() == nil; i = (i + 1) % 3 {
			put(t, other, "x", noise(i, size))
		}
	}()
	for range 30 {
		b, err := get(t.Context(), s, "x")
		if err != nil {
			continue // it says that it changed
		}
		if !bytes.Equal(b, noise(0, size)) && !bytes.Equal(b, noise(1, size)) && !bytes.Equal(b, noise(2, size)) {
			t.Errorf("got %d bytes of no version", len(b))
		}
	}
	stop()
	wg.Wait()
}
