package qcow2

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"os"
	"testing"
)

// fewStripes makes an Encryption whose header is small.
func fewStripes(t testing.TB) *Encryption {
	t.Helper()
	enc, err := newEncryption(keyA, []byte(ring()[keyA]), 8)
	if err != nil {
		t.Fatal(err)
	}
	return enc
}

// tiny is a file of clusters of 512 bytes with that Encryption: a disk of 16 KiB
// whose first cluster holds data.
func tiny(enc *Encryption, data []byte) []byte {
	const luks, cluster = 3, 512
	end := luks + (len(enc.header)+cluster-1)/cluster
	g := geometry{luks: 1, l1Entries: 1, l1: 1}
	b, err := header(16<<10, g, "", compressionZlib, enc, nil)
	if err != nil {
		panic(err)
	}
	b = append(b[:cluster:cluster], make([]byte, end*cluster)...)
	be := binary.BigEndian
	be.PutUint32(b[20:], 9)
	be.PutUint64(b[40:], cluster)
	be.PutUint64(b[headerSize+8:], luks*cluster)
	be.PutUint64(b[cluster:], 2*cluster|entryCopied)
	be.PutUint64(b[2*cluster:], uint64(end*cluster)|entryCopied)
	copy(b[luks*cluster:], enc.header)
	copy(b[end*cluster:], data)
	enc.encrypt(b[end*cluster:], int64(end*cluster))
	return b
}

func TestTinyFileOpens(t *testing.T) {
	data := bytes.Repeat([]byte("sector! "), 64)
	img := openKeyed(t, write(t, tiny(fewStripes(t), data)))
	if got := readAll(t, img); !bytes.Equal(got[:512], data) || !isZero(got[512:]) {
		t.Errorf("the data reads as %q", got[:512])
	}
}

// atLUKS edits the LUKS header of a file of tiny.
func atLUKS(edit func([]byte) []byte) func([]byte) []byte {
	return func(b []byte) []byte { return append(b[:3*512:3*512], edit(b[3*512:])...) }
}

func putText(at int, s string) func([]byte) []byte {
	return func(b []byte) []byte { copy(b[at:], s); return b }
}

func all(edits ...func([]byte) []byte) func([]byte) []byte {
	return func(b []byte) []byte {
		for _, e := range edits {
			b = e(b)
		}
		return b
	}
}

func TestHostileLUKS(t *testing.T) {
	const pointer, id, slot = headerSize + 8, headerSize + 24, luksSlotsAt
	everySlot := func(b []byte) []byte { // 8 slots, each with as much work as one may have
		for i := range luksSlots {
			copy(b[slot+i*luksSlotSize:], b[slot:slot+luksSlotSize])
			put32(slot+i*luksSlotSize+4, maxLUKSWork/2-luksIterations)(b)
		}
		return b
	}
	for _, c := range []struct {
		name string
		edit func([]byte) []byte
		want error
	}{
		{"no LUKS header", put32(headerSize, 1), ErrCorrupt},
		{"a pointer of 8 bytes", put32(headerSize+4, 8), ErrCorrupt},
		{"a header off the clusters", put64(pointer, 3*512+8), ErrCorrupt},
		{"a header in the qcow2 header", put64(pointer, 0), ErrCorrupt},
		{"a header behind the file", put64(pointer, 1<<40), ErrCorrupt},
		{"a header whose place wraps round", put64(pointer, 1<<64-512), ErrCorrupt},
		{"a header of no bytes", put64(pointer+8, 0), ErrCorrupt},
		{"a header of 2^63 bytes", put64(pointer+8, 1<<63), ErrCorrupt},
		{"a header of 1 GiB", put64(pointer+8, 1<<30), ErrCorrupt},
		{"an id of 65 bytes", put32(id+4, maxKeyID+1), ErrCorrupt},
		{"an id of control characters", putText(id+8, "\x1b[2J"), ErrCorrupt},
		{"cut off in the header", cut(3*512 + 500), ErrCorrupt},
		{"cut off in the key material", cut(3*512 + luksAlign + 10), ErrCorrupt},
		{"another magic", atLUKS(putText(0, "LUKS2")), ErrCorrupt},
		{"version 2", atLUKS(putText(6, "\x00\x02")), ErrUnsupported},
		{"another cipher", atLUKS(putText(8, "serpent")), ErrUnsupported},
		{"a cipher's name without end", atLUKS(putText(8, "aesaesaesaesaesaesaesaesaesaesaes")), ErrUnsupported},
		{"another mode", atLUKS(putText(40, "cbc-essiv:sha256")), ErrUnsupported},
		{"another hash", atLUKS(putText(72, "ripemd160")), ErrUnsupported},
		{"keys of 32 bytes", atLUKS(put32(108, 32)), ErrUnsupported},
		{"keys of 4 GiB", atLUKS(put32(108, 1<<32-1)), ErrUnsupported},
		{"a slot that is neither in use nor free", atLUKS(put32(slot, 7)), ErrCorrupt},
		{"no slot in use", atLUKS(put32(slot, luksSlotOff)), ErrCorrupt},
		{"no stripes", atLUKS(put32(slot+44, 0)), ErrCorrupt},
		{"more stripes than there are", atLUKS(put32(slot+44, luksStripes+1)), ErrCorrupt},
		{"stripes of 256 GiB", atLUKS(put32(slot+44, 1<<32-1)), ErrCorrupt},
		{"stripes that end behind the header", atLUKS(put32(slot+44, luksStripes)), ErrCorrupt},
		{"key material behind the header", atLUKS(put32(slot+40, 1<<32-1)), ErrCorrupt},
		{"key material in the header", atLUKS(put32(slot+40, 1)), ErrCorrupt},
		{"no iterations", atLUKS(put32(slot+4, 0)), ErrCorrupt},
		{"no iterations for the digest", atLUKS(put32(164, 0)), ErrCorrupt},
		{"2^32 iterations", atLUKS(put32(slot+4, 1<<32-1)), ErrUnsupported},
		{"2^32 iterations for the digest", atLUKS(put32(164, 1<<32-1)), ErrUnsupported},
		{"much work in every slot", atLUKS(everySlot), ErrUnsupported},
		{"another digest", atLUKS(putText(112, "not the digest")), ErrWrongKey},
		{"another salt", atLUKS(putText(132, "not the salt")), ErrWrongKey},
		{"another salt of the slot", atLUKS(putText(slot+8, "not the salt")), ErrWrongKey},
		{"other key material", atLUKS(putText(luksAlign+300, "not the material")), ErrWrongKey},
		{"a free slot that says what cannot be", atLUKS(all(put32(slot+luksSlotSize+40, 1<<32-1), put32(slot+luksSlotSize+44, 1<<32-1))), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := write(t, c.edit(tiny(fewStripes(t), nil)))
			var err error
			if n := allocated(func() { _, err = ReadEncryption(ring().keys, path) }); n > 8<<20 {
				t.Errorf("reading took %d bytes of memory, want at most 8 MiB", n)
			}
			wantError(t, "ReadEncryption", err, c.want)
			img, err := OpenKeyed(ring().keys, path)
			if err == nil {
				img.Close()
			}
			wantError(t, "OpenKeyed", err, c.want)
		})
	}
}

// TestDamagedLUKS turns round a bit in each byte of a LUKS header: what can still
// be opened gives the same key.
func TestDamagedLUKS(t *testing.T) {
	enc := fewStripes(t)
	pass := []byte(ring()[keyA])
	opened := 0
	for at := range enc.header {
		if at >= luksHeaderSize+16 && at < luksAlign {
			continue // nothing is there
		}
		b := bytes.Clone(enc.header)
		b[at] ^= 1 << (at % 8)
		h, err := parseLUKS(b, enc.length)
		if err == nil && h.iterations+h.slots[0].iterations > 10*luksIterations {
			continue // sound, but long to open
		}
		var key *dataKey
		if err == nil {
			key, err = h.unlock(append(b, make([]byte, h.used())...), pass)
		}
		switch {
		case err == nil && *key != enc.secret().key:
			t.Fatalf("with a bit of byte %d turned round another key comes out", at)
		case err == nil:
			opened++
		case !ours(err) && !errors.Is(err, ErrWrongKey):
			t.Fatalf("with a bit of byte %d turned round: got error %v", at, err)
		}
	}
	if opened == 0 {
		t.Error("a bit of padding was missed by nobody, want it so")
	}
}

// TestDamagedFile damages an encrypted head at random: it opens as it was, or not.
func TestDamagedFile(t *testing.T) {
	good, err := os.ReadFile(encryptedHead(t, 1<<20, "", encryption(t, keyA)))
	if err != nil {
		t.Fatal(err)
	}
	var noise [64]byte
	for at := 0; at < ClusterSize+luksAlign+4*dataKeySize; at += 61 {
		if at > 1024 && at < ClusterSize-64 {
			continue // nothing is there
		}
		b := bytes.Clone(good)
		rand.Read(noise[:])
		copy(b[at:], noise[:])
		if !cheap(b) {
			continue
		}
		img, err := OpenKeyed(ring().keys, write(t, b))
		if err == nil {
			img.Close()
		} else if !ours(err) {
			t.Errorf("noise at %d: got error %v", at, err)
		}
	}
}

// TestStripes: all of a split key is needed to have it again.
func TestStripes(t *testing.T) {
	key := make([]byte, dataKeySize)
	rand.Read(key)
	for _, stripes := range []int{1, 2, 5, luksStripes} {
		b := make([]byte, stripes*dataKeySize)
		splitStripes(b, key)
		if got := joinStripes(b, dataKeySize); !bytes.Equal(got, key) {
			t.Errorf("%d stripes give another key", stripes)
		}
		b[len(b)/2] ^= 1
		if got := joinStripes(b, dataKeySize); bytes.Equal(got, key) {
			t.Errorf("%d stripes with a damaged bit give the key", stripes)
		}
	}
}
