package snapshot

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/qcow2"
)

// drafted says how far a draft has come: the mark of block 0, beside block 1,
// which must be as it was put.
func drafted(t *testing.T, s *Store, _ task) string {
	t.Helper()
	d, err := s.OpenDraft(theDraft)
	if errors.Is(err, ErrNoDraft) {
		return "absent"
	}
	if err != nil {
		t.Errorf("the draft is there and not whole: %v", err)
		return "broken"
	}
	defer d.Close()
	blocks, err := d.Blocks()
	if err != nil || blocks.Len() == 0 {
		return fmt.Sprintf("empty, %v", err)
	}
	var marks []string
	for n := range blocks.Len() {
		b := make([]byte, qcow2.BlockSize)
		if err := blocks.ReadBlock(b, n); err != nil {
			t.Error(err)
		}
		for mark := range int64(4) {
			if bytes.Equal(b, block(mark)) {
				marks = append(marks, fmt.Sprint(mark))
			}
		}
	}
	return strings.Join(marks, " ")
}

// draftCase is a crash case of a draft.
func draftCase(name, job string, ready map[int64]int64, want [2]string, steps ...string) crashCase {
	files := []string{"drafts/" + string(theDraft) + "/journal", "drafts/" + string(theDraft) + "/blocks"}
	return crashCase{
		name,
		task{Job: job},
		func(t *testing.T, s *Store, _ *task) {
			t.Helper()
			if ready == nil {
				return
			}
			newDraft(t, s)
			for index, mark := range ready {
				if err := put(s, index, mark); err != nil {
					t.Fatal(err)
				}
			}
		},
		drafted, want,
		func(_ *Store, _ task, state string) []string {
			if state == "absent" {
				return files[1:] // when it is being removed, the journal goes first
			}
			return files
		},
		steps,
	}
}

// draftJob is what a child does to a draft.
func draftJob(s *Store, job string) error {
	switch job {
	case "draft create":
		return s.CreateDraft(theDraft, draftSize, time.Hour)
	case "draft put":
		return put(s, 0, 2)
	case "draft clear":
		return put(s, 0, 0)
	case "draft remove":
		return s.RemoveDraft(theDraft)
	case "draft fill":
		return fillDisk(task{Root: s.root})
	}
	name, first, _ := strings.Cut(job, "#")
	if n, err := strconv.ParseInt(first, 10, 64); err == nil && name == "draft write" {
		return writeForever(s, n)
	}
	return fmt.Errorf("no such job: %q", job)
}

// writeForever puts blocks, from four goroutines, each of which has blocks of its
// own: says which before, and that it is done after.
func writeForever(s *Store, first int64) error {
	failed := make(chan error)
	var mu sync.Mutex
	say := func(what string, index, mark int64) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintln(os.Stdout, what, index, mark)
	}
	for g := range int64(4) {
		go func() {
			for n := int64(0); ; n++ {
				index, mark := first+4*g+n%4, 1000*(first+4*g)+n+1
				say("put", index, mark)
				if err := put(s, index, mark); err != nil {
					failed <- err
					return
				}
				say("done", index, mark)
			}
		}()
	}
	return <-failed
}

// Writers that are killed, two at a time, lose nothing of what they have said to
// be done; what they had no time to say is there whole or not at all.
func TestKilledPutters(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := open(t)
	newDraft(t, s)
	could, must := map[int64][]int64{}, map[int64]bool{} // what may be in each block, and which are there
	for round := range int64(4) {
		said := make([]string, 2)
		var wg sync.WaitGroup
		for w := range said {
			cmd := task{Job: fmt.Sprintf("draft write#%d", 32*round+16*int64(w)), Root: s.root}.command(t, self)
			wg.Go(func() { said[w] = killedAfter(cmd, 10+7*int(round)) })
		}
		wg.Wait()
		for w, text := range said {
			done := 0
			for _, line := range strings.Split(text, "\n") {
				var what string
				var index, mark int64
				if _, err := fmt.Sscan(line, &what, &index, &mark); err != nil {
					continue
				}
				if what == "done" {
					could[index], must[index], done = []int64{mark}, true, done+1
				} else {
					could[index] = append(could[index], mark)
				}
			}
			if done == 0 {
				t.Fatalf("writer %d of round %d did nothing: %s", w, round, text)
			}
		}
	}
	blocks, err := openDraft(t, s).Blocks()
	if err != nil {
		t.Fatal(err)
	}
	got := map[int64]int{}
	for n := range blocks.Len() {
		index, _ := blocks.Block(n)
		got[index] = n
	}
	for index, marks := range could {
		n, there := got[index]
		if !there {
			if must[index] {
				t.Errorf("block %d is not there, want one of the marks %v", index, marks)
			}
			continue
		}
		b := make([]byte, qcow2.BlockSize)
		if err := blocks.ReadBlock(b, n); err != nil || !slices.ContainsFunc(marks, func(m int64) bool { return bytes.Equal(b, block(m)) }) {
			t.Errorf("block %d: got %v, or none of the marks %v", index, err, marks)
		}
	}
}

// killedAfter runs a child until it has said so many lines, kills it, and returns
// all that it said.
func killedAfter(cmd *exec.Cmd, lines int) string {
	var said, stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return err.Error()
	}
	for sc := bufio.NewScanner(out); sc.Scan(); lines-- {
		fmt.Fprintln(&said, sc.Text())
		if lines == 0 {
			cmd.Process.Kill()
		}
	}
	cmd.Wait()
	return said.String() + stderr.String()
}

// fillDisk puts blocks until the disk is as full as it may become, and removes the
// draft.
func fillDisk(do task) error {
	s, o, err := do.mounted(70)
	if err == nil {
		err = s.CreateDraft(theDraft, draftSize, time.Hour)
	}
	index := int64(0)
	for ; err == nil; index++ {
		err = put(s, index, 1)
	}
	o.note("put", err)
	d, err := s.OpenDraft(theDraft)
	if err != nil {
		return err
	}
	defer d.Close()
	blocks, err := d.Blocks()
	o.note("read", err)
	o.Head = fmt.Sprint(index - 1 - int64(blocks.Len()))
	o.note("remove", s.RemoveDraft(theDraft))
	return o.print(s)
}

// On a disk that is full no more is put; what was put is there and can be removed.
func TestDraftOnAFullDisk(t *testing.T) {
	got := task{Job: "draft fill"}.onOwnDisk(t)
	if !got.NoSpace["put"] {
		t.Errorf("put: got the error %q, want ErrNoSpace", got.Errors["put"])
	}
	if got.Errors["read"] != "" || got.Errors["remove"] != "" || got.Head != "0" || len(got.Files) > 0 {
		t.Errorf("got %+v, want all that was put, and then nothing left", got)
	}
}
