package snapshot

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/qcow2"
)

// Encrypted is a source that says what its layer is to be encrypted with, nil for
// nothing: an open head or layer does, so that what comes out of an encrypted
// disk is encrypted too, with the same data key.
type Encrypted interface{ Encryption() *qcow2.Encryption }

// Encrypt is src as a source whose layer is encrypted with a new data key, which
// the key of that id wraps. Nothing that src says of a parent counts any more:
// the layer holds all.
func (s *Store) Encrypt(src qcow2.Source, key string) (qcow2.Source, error) {
	enc, err := s.newEncryption(key)
	return encrypted{src, enc}, err
}

type encrypted struct {
	qcow2.Source
	enc *qcow2.Encryption
}

func (e encrypted) Encryption() *qcow2.Encryption { return e.enc }

func encryptionOf(src qcow2.Source) *qcow2.Encryption {
	if e, ok := src.(Encrypted); ok {
		return e.Encryption()
	}
	return nil
}

// sameKey says whether two are encrypted with the same key, or both not at all.
func sameKey(a, b *qcow2.Encryption) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.KeyID() == b.KeyID()
}

func (s *Store) newEncryption(key string) (*qcow2.Encryption, error) {
	if s.keys == nil {
		return nil, fmt.Errorf("%w: %s", qcow2.ErrNoKey, key)
	}
	passphrase, err := s.keys(key)
	if err != nil {
		return nil, err
	}
	return qcow2.NewEncryption(key, passphrase)
}

// encryptionOn is what a head on layer is encrypted with: with the layer's own
// data key where the same key wraps it, else with a new one.
func (s *Store) encryptionOn(layer digest.Digest, key string) (*qcow2.Encryption, error) {
	under, err := s.encryptionOfLayer(layer)
	switch {
	case err != nil:
		return nil, err
	case key == "" && under != nil:
		return nil, fmt.Errorf("%w: the layer %s", ErrPlain, layer.Short())
	case key == "":
		return nil, nil
	case under != nil && under.KeyID() == key:
		return under, nil
	}
	return s.newEncryption(key)
}

// encryptionOfLayer is what a layer is encrypted with, nil for nothing.
func (s *Store) encryptionOfLayer(layer digest.Digest) (*qcow2.Encryption, error) {
	if layer == "" {
		return nil, nil
	}
	return s.encryptionOfFile(s.layerPath(layer))
}

// HeadEncryption is what a volume's head is encrypted with, nil for nothing. A
// guest may have it open.
func (s *Store) HeadEncryption(id ami.VolumeID) (*qcow2.Encryption, error) {
	return s.encryptionOfFile(s.HeadPath(id))
}

func (s *Store) encryptionOfFile(path string) (*qcow2.Encryption, error) {
	enc, err := qcow2.ReadEncryption(s.keys, path)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return enc, err
}

// KeyOf is the id of the key that the head or layer at path needs, "" for none.
func (s *Store) KeyOf(path string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	info, err := qcow2.Inspect(f, st.Size())
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return info.KeyID, nil
}

// sealBlocks and openBlocks keep the digests of what is encrypted from who may
// not read it: they tell whether a disk holds a known block.
func sealBlocks(w io.Writer, blocks *qcow2.Blocks, enc *qcow2.Encryption) error {
	if enc == nil {
		_, err := blocks.WriteTo(w)
		return err
	}
	b, err := blocks.MarshalBinary()
	if err == nil {
		b, err = enc.Seal(b)
	}
	if err == nil {
		_, err = w.Write(b)
	}
	return err
}

// readBlocks reads the list at path. It returns qcow2.ErrCorrupt for one that is
// damaged.
func readBlocks(path string, enc *qcow2.Encryption) (*qcow2.Blocks, error) {
	if enc != nil { // sealed as a whole
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		return openBlocks(b, enc)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	blocks := &qcow2.Blocks{}
	_, err = blocks.ReadFrom(f)
	return blocks, err
}

// openBlocks returns qcow2.ErrCorrupt for a list that is damaged.
func openBlocks(b []byte, enc *qcow2.Encryption) (*qcow2.Blocks, error) {
	if enc != nil {
		var err error
		if b, err = enc.Unseal(b); err != nil {
			return nil, err
		}
	}
	blocks := &qcow2.Blocks{}
	return blocks, blocks.UnmarshalBinary(b)
}
