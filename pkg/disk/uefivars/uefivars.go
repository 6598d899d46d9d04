// Package uefivars reads and writes the variables of UEFI: the store in the flash
// memory of EDK II's firmware (OVMF, AAVMF), which a guest writes and an image keeps,
// and the text that EC2 has for one, UefiData. Both come from outside, and are read
// within bounds.
package uefivars

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf16"

	"github.com/kamivm/kami/pkg/ami"
)

// ErrFormat is what is no variable store, or a damaged one.
var ErrFormat = errors.New("not the variables of UEFI")

// GUID is an identifier as it lies in memory: its first three fields little-endian.
type GUID [16]byte

// Var is one variable.
type Var struct {
	Name       string
	Vendor     GUID
	Attributes uint32
	Timestamp  [16]byte // of one that only its signer may change
	Data       []byte
}

// The identifiers of what is looked for.
const (
	guidFlash  = "\x8d\x2b\xf1\xff\x96\x76\x8b\x4c\xa9\x85\x27\x47\x07\x5b\x4f\x50"
	guidStore  = "\x78\x2c\xf3\xaa\x7b\x94\x9a\x43\xa1\x80\x2e\x14\x4e\xc3\x77\x92"
	guidGlobal = "\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c"
	guidCertDB = "\x6e\xe5\xbe\xd9\xdc\x75\xd9\x49\xb4\xd7\xb5\x34\x21\x0f\x63\x7a"
)

// SecureBoot says whether variables turn Secure Boot on: a platform key is enrolled.
func SecureBoot(vars []Var) bool {
	for _, v := range vars {
		if v.Name == "PK" && string(v.Vendor[:]) == guidGlobal && len(v.Data) > 0 {
			return true
		}
	}
	return false
}

// The layout of a flash memory: a volume's header, a store's, the variables, each on
// a multiple of four, and nothing written behind them. The upper half is the
// firmware's own.
const (
	flashHeader = 72
	storeHeader = 28
	storeEnd    = 0x40000
	varHeader   = 60

	maxFlash = 1 << 20 // bytes of a volume
	maxVars  = 4096

	varStart   = 0x55aa
	varSettled = 0x3f
)

// shape is how a firmware's flash memory is divided, in bytes.
type shape struct{ volume, block, device int64 }

func shapeOf(arch ami.Architecture) shape {
	if arch == ami.ArchARM64 {
		return shape{0xc0000, 0x40000, 64 << 20}
	}
	return shape{0x84000, 0x1000, 0x84000}
}

// DeviceSize is how many bytes the flash memory has that a guest of an architecture
// is given for its variables. Behind the volume there are zeros.
func DeviceSize(arch ami.Architecture) int64 { return shapeOf(arch).device }

// Volume is as much of a flash memory as says anything: its volume. It is nil for a
// memory that no firmware has written to. It returns ErrFormat.
func Volume(flash []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(flash) < flashHeader {
		return nil, fmt.Errorf("%w: it has %d bytes", ErrFormat, len(flash))
	}
	if string(flash[40:44]) == "\x00\x00\x00\x00" && le.Uint64(flash[32:]) == 0 {
		return nil, nil
	}
	size := le.Uint64(flash[32:])
	switch {
	case string(flash[16:32]) != guidFlash || string(flash[40:44]) != "_FVH" || le.Uint16(flash[48:]) != flashHeader:
		return nil, fmt.Errorf("%w: it has not the header of a flash memory", ErrFormat)
	case size < flashHeader+storeHeader || size > maxFlash || size > uint64(len(flash)):
		return nil, fmt.Errorf("%w: its volume has %d bytes", ErrFormat, size)
	case sum16(flash[:flashHeader]) != 0:
		return nil, fmt.Errorf("%w: the checksum of its header is wrong", ErrFormat)
	}
	return flash[:size], nil
}

// Parse reads the variables in a flash memory, those that are in force, in the order
// in which they were written. It returns ErrFormat.
func Parse(flash []byte) ([]Var, error) {
	b, err := Volume(flash)
	if err != nil || b == nil {
		return nil, err
	}
	le := binary.LittleEndian
	if string(b[flashHeader:flashHeader+16]) != guidStore {
		return nil, fmt.Errorf("%w: its store is of another kind", ErrFormat)
	}
	end := flashHeader + int64(le.Uint32(b[flashHeader+16:]))
	if end < flashHeader+storeHeader || end > int64(len(b)) {
		return nil, fmt.Errorf("%w: its store ends at %d", ErrFormat, end)
	}
	var vars []Var
	b = b[flashHeader+storeHeader : end]
	for len(b) >= varHeader && le.Uint16(b) == varStart {
		state, attributes := b[2], le.Uint32(b[4:])
		name, data := int64(le.Uint32(b[36:])), int64(le.Uint32(b[40:]))
		size := varHeader + name + data
		if size > int64(len(b)) || name < 2 || name%2 != 0 {
			return nil, fmt.Errorf("%w: a variable of %d bytes leads out of it", ErrFormat, size)
		}
		if state == varSettled {
			if len(vars) == maxVars {
				return nil, fmt.Errorf("%w: it has more than %d variables", ErrFormat, maxVars)
			}
			vars = append(vars, Var{
				Name: fromUTF16(b[varHeader : varHeader+name]), Vendor: GUID(b[44:60]), Attributes: attributes,
				Timestamp: [16]byte(b[16:32]), Data: b[varHeader+name : size : size],
			})
		}
		b = b[min((size+3)&^3, int64(len(b))):]
	}
	return vars, nil
}

// Build makes the volume of a flash memory with variables, for the firmware of an
// architecture. It returns ErrFormat where they find no room.
func Build(vars []Var, arch ami.Architecture) ([]byte, error) {
	le, s := binary.LittleEndian, shapeOf(arch)
	b := make([]byte, s.volume)
	for i := range b { // what nothing was written to yet
		b[i] = 0xff
	}
	clear(b[:flashHeader])
	copy(b[16:], guidFlash)
	le.PutUint64(b[32:], uint64(s.volume))
	copy(b[40:], "_FVH")
	le.PutUint32(b[44:], 0x0004feff) // of flash memory that is read and written
	le.PutUint16(b[48:], flashHeader)
	b[55] = 2 // revision
	le.PutUint32(b[56:], uint32(s.volume/s.block))
	le.PutUint32(b[60:], uint32(s.block))
	le.PutUint16(b[50:], -sum16(b[:flashHeader]))
	copy(b[flashHeader:], guidStore)
	le.PutUint32(b[flashHeader+16:], storeEnd-flashHeader)
	le.PutUint64(b[flashHeader+20:], 0xfe5a) // formatted, healthy
	at := int64(flashHeader + storeHeader)
	for _, v := range vars {
		name := toUTF16(v.Name)
		size := int64(varHeader + len(name) + len(v.Data))
		if at+size > storeEnd {
			return nil, fmt.Errorf("%w: there is no room for all of them", ErrFormat)
		}
		h := b[at:]
		clear(h[:varHeader])
		le.PutUint16(h, varStart)
		h[2] = varSettled
		le.PutUint32(h[4:], v.Attributes)
		copy(h[16:], v.Timestamp[:])
		le.PutUint32(h[36:], uint32(len(name)))
		le.PutUint32(h[40:], uint32(len(v.Data)))
		copy(h[44:], v.Vendor[:])
		copy(h[varHeader:], name)
		copy(h[varHeader+len(name):], v.Data)
		at = (at + size + 3) &^ 3
	}
	return b, nil
}

// sum16 adds up b as little-endian words.
func sum16(b []byte) (sum uint16) {
	for i := 0; i+1 < len(b); i += 2 {
		sum += binary.LittleEndian.Uint16(b[i:])
	}
	return sum
}

func fromUTF16(b []byte) string {
	var units []uint16
	for ; len(b) >= 2; b = b[2:] {
		u := binary.LittleEndian.Uint16(b)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
}

func toUTF16(s string) (b []byte) {
	for _, u := range utf16.Encode([]rune(s + "\x00")) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}
