package qcow2

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// keyring is passphrases by the id of their key.
type keyring map[string]string

func (k keyring) keys(id string) ([]byte, error) {
	if p, ok := k[id]; ok {
		return []byte(p), nil
	}
	return nil, fmt.Errorf("%w: %s", ErrNoKey, id)
}

const (
	keyA = "5818b0f4-b67e-4dbc-a094-f16148fcf105"
	keyB = "0f0c5d1e-2b1a-4f7e-9c5d-3a1b2c3d4e5f"
)

// ring has the keys of the tests; "" is for what QEMU made.
func ring() keyring {
	text := func(b byte) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, 32)) }
	return keyring{keyA: text(1), keyB: text(2), "": text(3)}
}

func encryption(t testing.TB, id string) *Encryption {
	t.Helper()
	enc, err := NewEncryption(id, []byte(ring()[id]))
	if err != nil {
		t.Fatal(err)
	}
	return enc
}

func openKeyed(t *testing.T, path string, backing ...string) *Image {
	t.Helper()
	img, err := OpenKeyed(ring().keys, path, backing...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}

func encryptedHead(t testing.TB, size int64, backing string, enc *Encryption) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "head.qcow2")
	if err := CreateHead(path, size, backing, "kami-test", enc); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestKeysOfAFile(t *testing.T) {
	good := encryptedHead(t, 1<<20, "", encryption(t, keyA))
	plain := write(t, plainHeader(t))
	for _, c := range []struct {
		name string
		keys Keys
		path string
		want error
	}{
		{"the key", ring().keys, good, nil},
		{"no keys", nil, good, ErrNoKey},
		{"another key", keyring{keyB: ring()[keyB]}.keys, good, ErrNoKey},
		{"another passphrase", keyring{keyA: ring()[keyB]}.keys, good, ErrWrongKey},
		{"an empty passphrase", keyring{keyA: ""}.keys, good, ErrWrongKey},
		{"a file that needs none", nil, plain, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			img, err := OpenKeyed(c.keys, c.path)
			wantError(t, "OpenKeyed", err, c.want)
			enc, rerr := ReadEncryption(c.keys, c.path)
			wantError(t, "ReadEncryption", rerr, c.want)
			if c.want != nil {
				for _, err := range []error{err, rerr} {
					if !strings.Contains(err.Error(), keyA) || strings.Contains(err.Error(), ring()[keyB]) {
						t.Errorf("the error is %q, which has to name the key %s and no passphrase", err, keyA)
					}
				}
				return
			}
			defer img.Close()
			if c.path == plain {
				if enc != nil || img.Encryption() != nil {
					t.Errorf("a plain file is encrypted by %v and %v", enc, img.Encryption())
				}
				return
			}
			if enc.KeyID() != keyA || img.Encryption().KeyID() != keyA || img.Info().KeyID != keyA || !img.Info().Encrypted {
				t.Errorf("got the keys %q, %q and %+v, want %s", enc.KeyID(), img.Encryption().KeyID(), img.Info(), keyA)
			}
			if !bytes.Equal(enc.header, img.Encryption().header) || enc.secret().key != img.Encryption().secret().key {
				t.Error("read twice, the encryption of a file is not the same")
			}
		})
	}
	_, err := Open(good)
	wantError(t, "Open", err, ErrNoKey)
	if _, err := ReadEncryption(nil, filepath.Join(t.TempDir(), "none")); !os.IsNotExist(err) {
		t.Errorf("a file that is not there: got error %v", err)
	}
}

// TestALineageIsUnlockedOnce: a chain of one Encryption asks for its key once.
func TestALineageIsUnlockedOnce(t *testing.T) {
	a, b := encryption(t, keyA), encryption(t, keyB)
	var asked []string
	keys := func(id string) ([]byte, error) {
		asked = append(asked, id)
		return ring().keys(id)
	}
	img, err := OpenKeyed(keys, encryptedHead(t, 1<<20, "", a), encryptedHead(t, 1<<20, "", a), encryptedHead(t, 1<<20, "", b), encryptedHead(t, 1<<20, "", a))
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	if got := strings.Join(asked, " "); got != keyA+" "+keyB {
		t.Errorf("asked for the keys %s, want %s %s", got, keyA, keyB)
	}
}

func TestEncryptionIsRefused(t *testing.T) {
	good := strings.Repeat("x", minPassphrase)
	for _, c := range []struct{ name, id, passphrase string }{
		{"no id", "", good},
		{"an id too long", strings.Repeat("x", maxKeyID+1), good},
		{"an id of two lines", "a\nb", good},
		{"no passphrase", keyA, ""},
		{"a passphrase to guess", keyA, "secret"},
		{"a passphrase too long", keyA, strings.Repeat("x", maxPassphrase+1)},
		{"a passphrase that QEMU would cut off", keyA, good + "\x00x"},
		{"a passphrase that is no text", keyA, good + "\xff"},
	} {
		_, err := NewEncryption(c.id, []byte(c.passphrase))
		wantError(t, c.name, err, ErrUnsupported)
	}
}

// TestEncryptionIsRandom: no two have a key, a salt or a stripe in common.
func TestEncryptionIsRandom(t *testing.T) {
	a, b := encryption(t, keyA), encryption(t, keyA)
	if a.secret().key == b.secret().key || bytes.Equal(a.header[132:164], b.header[132:164]) ||
		bytes.Equal(a.header[216:248], b.header[216:248]) || bytes.Equal(a.header[luksAlign:luksAlign+32], b.header[luksAlign:luksAlign+32]) {
		t.Error("two encryptions have something in common")
	}
}

// TestPrintingShowsNoKey looks for the data key in all ways of printing it.
func TestPrintingShowsNoKey(t *testing.T) {
	enc := encryption(t, keyA)
	k := enc.secret().key[:8]
	decimal, literal := fmt.Sprintf("%d", k), fmt.Sprintf("%#v", k)
	needles := []string{
		string(k), hex.EncodeToString(k), strings.ToUpper(hex.EncodeToString(k)), base64.StdEncoding.EncodeToString(k)[:9],
		strings.Trim(decimal, "[]"), strings.TrimSuffix(strings.TrimPrefix(literal, "[]byte{"), "}"),
	}
	img := openKeyed(t, encryptedHead(t, 1<<20, "", enc))
	for _, v := range []any{
		enc, *enc, &enc,
		[]*Encryption{enc},
		[]Encryption{*enc},
		struct{ E *Encryption }{enc},
		struct{ e *Encryption }{enc},
		struct{ e Encryption }{*enc},
		img, *img, img.files[0],
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%p"} {
			got := fmt.Sprintf(verb, v)
			for _, n := range needles {
				if strings.Contains(got, n) {
					t.Errorf("%s of %T shows the data key", verb, v)
				}
			}
		}
	}
	want := "encryption by the key " + keyA
	if got := []string{fmt.Sprint(enc), enc.String(), fmt.Sprintf("%x", enc), fmt.Sprintf("%#v", *enc), enc.GoString()}; strings.Join(got, "") != strings.Repeat(want, 5) {
		t.Errorf("got %q, want each %q", got, want)
	}
}

func TestSeal(t *testing.T) {
	enc := encryption(t, keyA)
	path := encryptedHead(t, 1<<20, "", enc)
	for _, plain := range [][]byte{nil, []byte("a list"), bytes.Repeat([]byte("blocks "), 100_000)} {
		sealed, err := enc.Seal(plain)
		if err != nil {
			t.Fatal(err)
		}
		if len(plain) > 0 && bytes.Contains(sealed, plain[:min(6, len(plain))]) {
			t.Error("what is sealed can be read")
		}
		again, err := enc.Seal(plain)
		if err != nil || bytes.Equal(sealed, again) {
			t.Errorf("sealed twice it is the same, %v", err)
		}
		got, err := openKeyed(t, path).Encryption().Unseal(sealed)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d sealed bytes come back as %d, %v", len(plain), len(got), err)
		}
		for _, at := range []int{0, 7, 8, 20, len(sealed) - 17, len(sealed) - 1} {
			bad := bytes.Clone(sealed)
			bad[at] ^= 1
			_, err := enc.Unseal(bad)
			wantError(t, fmt.Sprintf("byte %d damaged", at), err, ErrCorrupt)
		}
		for _, n := range []int{0, 7, 8, 35, len(sealed) - 1} {
			_, err := enc.Unseal(sealed[:n])
			wantError(t, fmt.Sprintf("%d bytes of it", n), err, ErrCorrupt)
		}
		_, err = encryption(t, keyA).Unseal(sealed)
		wantError(t, "with another data key", err, ErrCorrupt)
	}
}

// TestConcurrentReads reads an encrypted chain from many sides, at odd places.
func TestConcurrentReads(t *testing.T) {
	l := encryptLineage(t, encryption(t, keyA), 4, 4000, 500, []byte{0, 2, 255, 64, 1, 255}, []byte{100, 2, 255, 200, 1, 90})
	img := openKeyed(t, l.childPath, l.parentPath)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			p := make([]byte, 3001)
			for off := i * 777; off+len(p) < len(l.child); off += 50_021 {
				if _, err := img.ReadAt(p, int64(off)); err != nil || !bytes.Equal(p, l.child[off:off+len(p)]) {
					t.Errorf("reading at %d gave something else, %v", off, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
