package nbd

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestStalledReadEnds holds that a read which is never answered ends when the
// client is closed, also where the server does not even take the farewell.
func TestStalledReadEnds(t *testing.T) {
	ours, theirs := net.Pipe() // nobody reads the other end
	defer theirs.Close()
	c := &Client{conn: ours, size: mib, pending: map[uint64]*request{}}
	go c.receive()
	read := make(chan error, 1)
	go func() {
		_, err := c.ReadAt(make([]byte, 512), 0)
		read <- err
	}()
	time.Sleep(10 * time.Millisecond)
	start := time.Now()
	c.Close()
	select {
	case err := <-read:
		if err == nil {
			t.Error("a read that was not answered succeeded")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the read still waits")
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestDialRefusesAnotherUsersServer(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give a socket away")
	}
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chown(socket, 12345, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(t.Context(), socket, "disk", ""); !errors.Is(err, ErrPeer) {
		t.Errorf("Dial: %v, want ErrPeer", err)
	}
}
