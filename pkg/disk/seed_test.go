package disk

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
)

func TestSeedIsReadByOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "seed.iso")
	if err := WriteSeed(path, Seed{MetaData: []byte("instance-id: i-1\n"), UserData: []byte("#!/bin/sh\n")}); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "xorriso", "-indev", path, "-find", "/", "-type", "f").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"Volume id    : 'cidata'", "'/meta-data'", "'/user-data'"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("xorriso does not show %s:\n%s", want, out)
		}
	}
}

func TestSeedTakesLittle(t *testing.T) {
	small := Seed{MetaData: []byte("instance-id: i-1\n"), UserData: []byte("#!/bin/sh\n")}
	for _, c := range []struct {
		name string
		seed Seed
		most int64
	}{
		{"two small files", small, 20 << 10},
		{"user data of zeros", Seed{MetaData: small.MetaData, UserData: make([]byte, 16<<10)}, 20 << 10},
		{"user data as long as can be", Seed{MetaData: small.MetaData, UserData: bytes.Repeat([]byte("#"), 16<<10)}, 36 << 10},
		{"all files", Seed{small.MetaData, small.UserData, []byte("#cloud-config\n"), []byte("version: 2\n")}, 24 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "seed.iso")
			if err := WriteSeed(path, c.seed); err != nil {
				t.Fatal(err)
			}
			var st syscall.Stat_t
			if err := syscall.Stat(path, &st); err != nil {
				t.Fatal(err)
			}
			if got := st.Blocks * 512; got > c.most {
				t.Errorf("it takes %d bytes on the disk, want at most %d", got, c.most)
			}
			if st.Mode&0o777 != 0o600 {
				t.Errorf("its mode is %o, want 600", st.Mode&0o777)
			}
			wantSeed(t, path, c.seed)
		})
	}
}

// wantSeed reads a seed back.
func wantSeed(t *testing.T, path string, want Seed) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	iso, err := iso9660.Read(file.New(f, true), 0, 0, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"meta-data": want.MetaData, "user-data": want.UserData,
		"vendor-data": want.VendorData, "network-config": want.NetworkConfig,
	} {
		got, err := fs.ReadFile(iso, name)
		if data == nil {
			if err == nil {
				t.Errorf("%s is there, want it left out", name)
			}
			continue
		}
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s holds %d bytes (%v), want %d others", name, len(got), err, len(data))
		}
	}
}
