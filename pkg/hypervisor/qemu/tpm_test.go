package qemu

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestTPMInAnyFolder: a TPM answers, and keeps its state in its folder, whatever that
// is called.
func TestTPMInAnyFolder(t *testing.T) {
	base, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) }) // in which it may still be ending
	dir := filepath.Join(base, "a,mode=0 b")
	said, err := os.Create(filepath.Join(t.TempDir(), "said"))
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	f, err := startTPM(dir, said)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 4)
	_, err = conn.Write([]byte{0, 0, 0, 2, 0, 0, 0, 0}) // CMD_INIT
	if err == nil {
		_, err = io.ReadFull(conn, answer)
	}
	if err != nil || [4]byte(answer) != [4]byte{} {
		b, _ := os.ReadFile(said.Name())
		t.Fatalf("got %x, %v; it said %q", answer, err, b)
	}
	if _, err := os.Stat(filepath.Join(dir, "tpm2-00.permall")); err != nil {
		t.Error(err)
	}
}
