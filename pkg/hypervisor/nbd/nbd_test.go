package nbd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// serve exports a qcow2 disk by qemu-nbd, a server that is not ours, and returns
// its socket.
func serve(t *testing.T, disk string, args ...string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	cmd := exec.CommandContext(t.Context(), "qemu-nbd", append([]string{"--socket", socket, "--export-name", "disk", "--read-only", "--persistent", "--format", "qcow2"}, append(args, disk)...)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for range 200 {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return socket
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("qemu-nbd does not listen")
	return ""
}

func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

const mib = 1 << 20

// disk makes a qcow2 of 64 MiB: 3 MiB of data at 8 MiB, and a bitmap that knows
// of 1 MiB of it and of a discarded MiB at 20 MiB.
func disk(t *testing.T) (path string, data []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "disk.qcow2")
	data = make([]byte, 3*mib)
	rng := rand.NewChaCha8([32]byte{7})
	rng.Read(data)
	raw := filepath.Join(t.TempDir(), "raw")
	if err := os.WriteFile(raw, data, 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "64M")
	tool(t, "qemu-io", "-f", "qcow2", "-c", "write -q -s "+raw+" 8M 3M", "-c", "write -q -P 1 20M 1M", path)
	tool(t, "qemu-img", "bitmap", "--add", path, "changes")
	rest := filepath.Join(t.TempDir(), "rest")
	if err := os.WriteFile(rest, data[mib:2*mib], 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-io", "-f", "qcow2", "-c", "write -q -s "+rest+" 9M 1M", "-c", "write -q -z -u 20M 1M", path)
	return path, data
}

func TestReadsWhatQEMUExports(t *testing.T) {
	path, data := disk(t)
	c, err := Dial(t.Context(), serve(t, path), "disk", "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.Size(); got != 64*mib {
		t.Errorf("the disk has %d bytes, want 64 MiB", got)
	}
	want := make([]byte, 64*mib)
	copy(want[8*mib:], data)
	got := make([]byte, 64*mib)
	if n, err := c.ReadAt(got, 0); n != len(got) || err != nil {
		t.Fatalf("reading all: %d bytes, %v", n, err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the disk reads as something else")
	}
	if n, err := c.ReadAt(make([]byte, 100), 64*mib-10); n != 10 || !errors.Is(err, io.EOF) {
		t.Errorf("reading past the end: %d bytes, %v, want 10 and EOF", n, err)
	}
}

func TestReadsSideBySide(t *testing.T) {
	path, data := disk(t)
	c, err := Dial(t.Context(), serve(t, path), "disk", "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	done := make(chan error)
	for i := range 48 {
		go func() {
			p := make([]byte, 64<<10)
			_, err := c.ReadAt(p, 8*mib+int64(i)*64<<10)
			if err == nil && !bytes.Equal(p, data[i*64<<10:(i+1)*64<<10]) {
				err = io.ErrUnexpectedEOF
			}
			done <- err
		}()
	}
	for range 48 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

type run struct {
	off, n      int64
	dirty, zero bool
}

func runs(t *testing.T, c *Client) []run {
	t.Helper()
	var out []run
	err := c.Extents(t.Context(), 0, c.Size(), func(off, n int64, dirty, zero bool) error {
		if k := len(out) - 1; k >= 0 && out[k].off+out[k].n == off && out[k].dirty == dirty && out[k].zero == zero {
			out[k].n += n
			return nil
		}
		out = append(out, run{off, n, dirty, zero})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestExtents(t *testing.T) {
	path, _ := disk(t)
	tests := []struct {
		name, bitmap string
		want         []run
	}{
		{"bitmap", "changes", []run{
			{0, 9 * mib, false, false},
			{9 * mib, mib, true, false},
			{10 * mib, 10 * mib, false, false},
			{20 * mib, mib, true, false},
			{21 * mib, 43 * mib, false, false},
		}},
		{"none", "", []run{
			{0, 8 * mib, true, true},
			{8 * mib, 3 * mib, true, false},
			{11 * mib, 53 * mib, true, true},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var args []string
			if tt.bitmap != "" {
				args = []string{"--bitmap", tt.bitmap}
			}
			c, err := Dial(t.Context(), serve(t, path, args...), "disk", tt.bitmap)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got := c.HasBitmap(); got != (tt.bitmap != "") {
				t.Errorf("HasBitmap says %v", got)
			}
			got := runs(t, c)
			if len(got) != len(tt.want) {
				t.Fatalf("got %v, want %v", got, tt.want)
			}
			for i := range got {
				if got[i] != tt.want[i] {
					t.Errorf("run %d is %v, want %v", i, got[i], tt.want[i])
				}
			}
		})
	}
}

func TestWhatIsNotThere(t *testing.T) {
	path, _ := disk(t)
	socket := serve(t, path)
	if _, err := Dial(t.Context(), socket, "other", ""); err == nil {
		t.Error("an export that is not there was opened")
	}
	if _, err := Dial(t.Context(), socket, "disk", "other"); err == nil {
		t.Error("a bitmap that is not there was opened")
	}
	if _, err := Dial(t.Context(), socket+"x", "disk", ""); err == nil {
		t.Error("a socket that is not there was opened")
	}
}

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	server, client := net.Pipe()
	defer server.Close()
	c := &Client{conn: client, size: mib, pending: map[uint64]*request{}}
	go c.receive()
	go io.Copy(io.Discard, server) // a server that never answers
	done := make(chan error)
	go func() {
		_, err := c.ReadAt(make([]byte, 512), 0)
		done <- err
	}()
	time.Sleep(10 * time.Millisecond)
	if err := c.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := <-done; err == nil {
		t.Error("a read went on after Close")
	}
	if err := c.Close(); err != nil {
		t.Errorf("the second Close: %v", err)
	}
}

// FuzzServer plays a server that sends anything: the client neither panics nor
// hangs nor takes memory for more than it asked for.
func FuzzServer(f *testing.F) {
	greeting := []byte("NBDMAGICIHAVEOPT\x00\x03")
	f.Add(greeting)
	ack := func(opt byte) []byte {
		return []byte{0, 3, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9, 0, 0, 0, opt, 0, 0, 0, 1, 0, 0, 0, 0}
	}
	meta := append([]byte{0, 3, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9, 0, 0, 0, 10, 0, 0, 0, 4, 0, 0, 0, 19, 0, 0, 0, 1}, "base:allocation"...)
	info := []byte{0, 3, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9, 0, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0}
	whole := bytes.Join([][]byte{greeting, ack(8), meta, ack(10), info, ack(7)}, nil)
	f.Add(whole)
	status := append([]byte{0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 12}, 0, 0, 0, 1, 0, 0, 0x10, 0, 0, 0, 0, 3)
	f.Add(append(bytes.Clone(whole), status...))
	f.Fuzz(func(t *testing.T, says []byte) {
		server, client := net.Pipe()
		go io.Copy(io.Discard, server)
		go func() {
			server.Write(says)
			server.Close()
		}()
		c, err := negotiate(client, "disk", "")
		if err != nil {
			client.Close()
			return
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		var at int64
		err = c.Extents(ctx, 0, 1<<20, func(off, n int64, _, _ bool) error {
			if off != at || n <= 0 {
				t.Errorf("a run of %d at %d, want it at %d", n, off, at)
			}
			at = off + n
			return nil
		})
		if ctx.Err() != nil {
			t.Fatal("the client hangs")
		}
		if err == nil {
			c.ReadAt(make([]byte, 4096), 0)
		}
	})
}
