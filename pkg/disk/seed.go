// Package disk knows what is on a disk: it lays out partitions with boot
// loaders, makes the seed that tells a guest who it is, and looks into disks
// that come from outside, which it treats as hostile.
package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"

	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/qcow2"
)

// Seed is what a NoCloud data source offers a guest.
type Seed struct {
	MetaData      []byte
	UserData      []byte
	VendorData    []byte
	NetworkConfig []byte // left out when empty
}

// WriteSeed writes a seed at path as an ISO 9660 file system labelled cidata,
// readable by its owner alone since user data may hold secrets. A file that is
// there already is replaced. Two thirds of a small seed are zeros, which are holes.
func WriteSeed(path string, seed Seed) (err error) {
	work, err := os.MkdirTemp(filepath.Dir(path), ".seed-*")
	if err != nil {
		return fmt.Errorf("making seed: %w", err)
	}
	defer os.RemoveAll(work)
	files := map[string][]byte{"meta-data": seed.MetaData, "user-data": seed.UserData}
	if len(seed.VendorData) > 0 {
		files["vendor-data"] = seed.VendorData
	}
	if len(seed.NetworkConfig) > 0 {
		files["network-config"] = seed.NetworkConfig
	}
	tree := filepath.Join(work, "tree")
	if err := os.Mkdir(tree, 0o700); err != nil {
		return fmt.Errorf("making seed: %w", err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(tree, name), data, 0o600); err != nil {
			return fmt.Errorf("making seed: %w", err)
		}
	}
	iso := filepath.Join(work, "seed.iso")
	f, err := os.OpenFile(iso, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("making seed: %w", err)
	}
	defer f.Close()
	fs, err := iso9660.Create(file.New(f, false), 0, 0, 2048, tree)
	if err != nil {
		return fmt.Errorf("making seed: %w", err)
	}
	if err := fs.Finalize(iso9660.FinalizeOptions{RockRidge: true, VolumeIdentifier: "cidata"}); err != nil {
		return fmt.Errorf("making seed: %w", err)
	}
	data, err := os.ReadFile(iso)
	if err != nil {
		return fmt.Errorf("making seed: %w", err)
	}
	if err := durable.WriteFile(path, 0o600, func(f *os.File) error {
		return errors.Join(qcow2.WriteSparse(f, data, 0), f.Truncate(int64(len(data))))
	}); err != nil {
		return fmt.Errorf("making seed: %w", err)
	}
	return nil
}
