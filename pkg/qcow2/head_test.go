package qcow2

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// bitmapInfo is what `qemu-img info --output=json` says of a bitmap.
type bitmapInfo struct {
	Name        string   `json:"name"`
	Granularity int      `json:"granularity"`
	Flags       []string `json:"flags"`
}

func infoOf(t *testing.T, path string) (size int64, backing, format string, bitmaps []bitmapInfo) {
	t.Helper()
	var info struct {
		Size     int64  `json:"virtual-size"`
		Backing  string `json:"backing-filename"`
		Format   string `json:"backing-filename-format"`
		Specific struct {
			Data struct {
				Bitmaps []bitmapInfo `json:"bitmaps"`
			} `json:"data"`
		} `json:"format-specific"`
	}
	if err := json.Unmarshal([]byte(qemuImg(t, "info", "--output=json", "-f", "qcow2", path)), &info); err != nil {
		t.Fatal(err)
	}
	return info.Size, info.Backing, info.Format, info.Specific.Data.Bitmaps
}

func TestHeadIsSound(t *testing.T) {
	for _, c := range []struct {
		name            string
		size            int64
		backing, bitmap string
	}{
		{"one sector", 512, "", "b"},
		{"no bitmap", 1 << 30, "", ""},
		{"over a layer", 10 << 30, strings.Repeat("0", 64) + ".qcow2", ""},
		{"over a layer with a bitmap", 10<<30 + 512, strings.Repeat("f", 64) + ".qcow2", "kami-0123456789abcdef0"},
		{"bitmap of many clusters", 3 << 40, "", "kami-large"},
		{"as large as can be", maxVirtualBytes, "", "kami-largest"},
		{"names as long as can be", 1 << 20, strings.Repeat("./", 509) + "layer", strings.Repeat("y", maxNameLen)},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "head.qcow2")
			if c.backing != "" {
				if err := CreateHead(filepath.Join(filepath.Dir(path), c.backing), 512, "", "", nil); err != nil {
					t.Fatal(err)
				}
			}
			if err := CreateHead(path, c.size, c.backing, c.bitmap, nil); err != nil {
				t.Fatal(err)
			}
			qemuImg(t, "check", "-f", "qcow2", path)
			size, backing, format, bitmaps := infoOf(t, path)
			if size != c.size || backing != c.backing {
				t.Errorf("got %d bytes over %q, want %d over %q", size, backing, c.size, c.backing)
			}
			if c.backing != "" && format != "qcow2" {
				t.Errorf("got backing format %q, want qcow2", format)
			}
			if c.bitmap == "" {
				if len(bitmaps) > 0 {
					t.Errorf("got bitmaps %v, want none", bitmaps)
				}
				return
			}
			if len(bitmaps) != 1 || bitmaps[0].Name != c.bitmap || bitmaps[0].Granularity != ClusterSize || !slices.Equal(bitmaps[0].Flags, []string{"auto"}) {
				t.Errorf("got bitmaps %v, want %q of %d bytes that records by itself", bitmaps, c.bitmap, ClusterSize)
			}
		})
	}
}

func TestHeadIsRefused(t *testing.T) {
	for _, c := range []struct {
		name            string
		size            int64
		backing, bitmap string
	}{
		{"no bytes", 0, "", ""},
		{"less than none", -512, "", ""},
		{"half a sector", 1<<20 + 256, "", ""},
		{"too large", maxVirtualBytes + 512, "", ""},
		{"a backing name too long", 1 << 20, strings.Repeat("x", maxNameLen+1), ""},
		{"a bitmap's name too long", 1 << 20, "", strings.Repeat("x", maxNameLen+1)},
	} {
		path := filepath.Join(t.TempDir(), "head.qcow2")
		wantError(t, c.name, CreateHead(path, c.size, c.backing, c.bitmap, nil), ErrUnsupported)
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a file was left: %v", c.name, err)
		}
	}
}

func TestHeadOverwritesNothing(t *testing.T) {
	path := write(t, []byte("mine"))
	wantError(t, "CreateHead", CreateHead(path, 1<<20, "", "", nil), fs.ErrExist)
	if got, err := os.ReadFile(path); err != nil || string(got) != "mine" {
		t.Errorf("the file that was there holds %q, %v", got, err)
	}
}

// dirty returns the clusters that a bitmap of a head marks, as QEMU exports it.
func dirty(t *testing.T, path, bitmap string) []int64 {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "s")
	listen, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock})
	if err != nil {
		t.Fatal(err)
	}
	listen.SetUnlinkOnClose(false)
	inherited, err := listen.File()
	if err != nil {
		t.Fatal(err)
	}
	// It is given the socket, which so listens already, ends with its one client,
	// and is waited for, since it locks the head.
	serve := exec.CommandContext(t.Context(), "sh", "-c", `exec env LISTEN_FDS=1 LISTEN_PID=$$ "$@"`, "sh",
		"qemu-nbd", "-r", "-f", "qcow2", "-B", bitmap, path)
	serve.ExtraFiles = []*os.File{inherited}
	if err := errors.Join(serve.Start(), listen.Close(), inherited.Close()); err != nil {
		t.Fatalf("qemu-nbd: %v", err)
	}
	out := qemuImg(t, "map", "--output=json", "--image-opts",
		"driver=nbd,server.type=unix,server.path="+sock+",x-dirty-bitmap=qemu:dirty-bitmap:"+bitmap)
	if err := serve.Wait(); err != nil {
		t.Fatalf("qemu-nbd: %v", err)
	}
	var runs []struct {
		Start, Length int64
		Data          bool
	}
	if err := json.Unmarshal([]byte(out), &runs); err != nil {
		t.Fatal(err)
	}
	var marked []int64
	for _, r := range runs {
		for off := r.Start; !r.Data && off < r.Start+r.Length; off += ClusterSize {
			marked = append(marked, off/ClusterSize)
		}
	}
	return marked
}

func TestHeadRecordsWrites(t *testing.T) {
	dir := t.TempDir()
	raw := filepath.Join(dir, "disk.raw")
	disk(t, raw, 16<<20, 5)
	base := writeLayer(t, dir, rawFile(t, raw), nil)
	head := filepath.Join(dir, "head.qcow2")
	if err := CreateHead(head, 700<<20, base.Layer.Hex()+".qcow2", "kami-test", nil); err != nil {
		t.Fatal(err)
	}
	if got := dirty(t, head, "kami-test"); len(got) > 0 {
		t.Errorf("nothing was written and clusters %v are marked", got)
	}
	qemuIO(t, head, "read 0 16M", "write -P 7 3M 64k", "write -P 1 100k 512")
	qemuIO(t, head, "write -z 5M 128k", "discard 8M 64k", "write -P 9 699M 1M")
	want := []int64{1, 48, 80, 81, 128}
	for c := int64(699 << 4); c < 700<<4; c++ {
		want = append(want, c)
	}
	if got := dirty(t, head, "kami-test"); !slices.Equal(got, want) {
		t.Errorf("clusters %v are marked, want %v", got, want)
	}
	if _, _, _, bitmaps := infoOf(t, head); len(bitmaps) != 1 || !slices.Equal(bitmaps[0].Flags, []string{"auto"}) {
		t.Errorf("after closing, the bitmaps are %v", bitmaps)
	}
	qemuImg(t, "check", "-f", "qcow2", head)
}

// onDisk is how many bytes a file takes on the disk.
func onDisk(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// An empty head is mostly holes, and stays so when QEMU has had it open, which
// writes the header and the refcounts anew, and the bitmap elsewhere.
func TestHeadTakesLittle(t *testing.T) {
	for _, size := range []int64{1 << 20, 10 << 30, 1 << 40, maxVirtualBytes} {
		path := filepath.Join(t.TempDir(), "head.qcow2")
		if err := CreateHead(path, size, "", "kami-test", nil); err != nil {
			t.Fatal(err)
		}
		if got := onDisk(t, path); got > 32<<10 {
			t.Errorf("a disk of %d bytes: an empty head takes %d bytes, want at most %d", size, got, 32<<10)
		}
		if size == maxVirtualBytes {
			continue // QEMU writes the bitmap's table, of 512 KiB
		}
		qemuIO(t, path, "read 0 64k")
		if got := onDisk(t, path); got > 192<<10 {
			t.Errorf("a disk of %d bytes: a head that was opened takes %d bytes, want at most %d", size, got, 192<<10)
		}
		if got := dirty(t, path, "kami-test"); len(got) > 0 {
			t.Errorf("a disk of %d bytes: nothing was written and clusters %v are marked", size, got)
		}
		qemuIO(t, path, "write -P 7 64k 1")
		if got := dirty(t, path, "kami-test"); !slices.Equal(got, []int64{1}) {
			t.Errorf("a disk of %d bytes: clusters %v are marked, want the second", size, got)
		}
		qemuImg(t, "check", "-f", "qcow2", path)
	}
}
