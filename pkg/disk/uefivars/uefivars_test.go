package uefivars

import (
	"bytes"
	"compress/zlib"
	"encoding/base64"
	"errors"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
)

// some are variables of each kind: signed, with an odd length, and a long name.
func some() []Var {
	return []Var{
		{Name: "Timeout", Vendor: GUID([]byte(guidGlobal)), Attributes: 7, Data: []byte{0, 0}},
		{Name: "PK", Vendor: GUID([]byte(guidGlobal)), Attributes: 0x27, Timestamp: [16]byte{0xe8, 7, 1}, Data: bytes.Repeat([]byte{1, 2, 3}, 335)},
		{Name: "BootÖrder-of-a-long-name", Vendor: GUID{1, 2, 3}, Attributes: 3, Data: []byte{9}},
		{Name: "Empty", Vendor: GUID{4}, Attributes: 7, Data: []byte{}},
	}
}

func TestStoreKeepsVariables(t *testing.T) {
	for _, arch := range []ami.Architecture{ami.ArchX8664, ami.ArchARM64} {
		b, err := Build(some(), arch)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse(append(b, make([]byte, 1000)...))
		if diff := cmp.Diff(some(), got); err != nil || diff != "" {
			t.Errorf("%s: (-want +got):\n%s%v", arch, diff, err)
		}
	}
	if _, err := Build([]Var{{Name: "x", Data: make([]byte, storeEnd)}}, ami.ArchX8664); !errors.Is(err, ErrFormat) {
		t.Errorf("a variable that is too large: %v", err)
	}
}

func TestTextKeepsVariables(t *testing.T) {
	text, err := Encode(append(some(), Var{Name: "certdb", Vendor: GUID([]byte(guidCertDB)), Data: []byte{4, 0, 0, 0}}))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(text[:40] + "\n" + text[40:])
	if diff := cmp.Diff(some(), got); err != nil || diff != "" {
		t.Errorf("(-want +got):\n%s%v", diff, err)
	}
	flash, err := Build(some(), ami.ArchX8664)
	if err != nil {
		t.Fatal(err)
	}
	var z bytes.Buffer
	w := zlib.NewWriter(&z)
	if _, err := w.Write(flash); err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"a flash memory": flash, "a compressed one": z.Bytes()} {
		got, err := Decode(base64.StdEncoding.EncodeToString(b))
		if diff := cmp.Diff(some(), got); err != nil || diff != "" {
			t.Errorf("%s: (-want +got):\n%s%v", name, diff, err)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	good, err := Encode(some())
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := base64.StdEncoding.DecodeString(good)
	raw[20] ^= 1
	var dict bytes.Buffer
	w, _ := zlib.NewWriterLevelDict(&dict, 9, []byte("PKKEKdbdbx"))
	if _, err := w.Write([]byte("PKKEK")); err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		text string
		want error
	}{
		"nothing":           {"", ErrFormat},
		"no base64":         {"!", ErrFormat},
		"text":              {base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("no store "), 20)), ErrFormat},
		"a changed bit":     {base64.StdEncoding.EncodeToString(raw), ErrFormat},
		"cut off":           {base64.StdEncoding.EncodeToString([]byte(magic)), ErrFormat},
		"with a dictionary": {base64.StdEncoding.EncodeToString(dict.Bytes()), ErrDictionary},
	} {
		if got, err := Decode(tt.text); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, %v, want %v", name, got, err, tt.want)
		}
	}
}

// TestTemplates reads what the firmware's packages bring: one has Microsoft's keys.
func TestTemplates(t *testing.T) {
	for path, want := range map[string]bool{"/usr/share/OVMF/OVMF_VARS_4M.fd": false, "/usr/share/OVMF/OVMF_VARS_4M.ms.fd": true} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		vars, err := Parse(b)
		if got := SecureBoot(vars); err != nil || got != want {
			t.Errorf("%s: Secure Boot is %t (%v), want %t", path, got, err, want)
		}
	}
	if vars, err := Parse(make([]byte, 1<<20)); err != nil || vars != nil {
		t.Errorf("a memory that nobody wrote to: %v, %v", vars, err)
	}
}

func FuzzDecode(f *testing.F) {
	text, err := Encode(some())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		vars, err := Decode(text)
		if err != nil {
			return
		}
		again, err := Encode(vars)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(again); err != nil && len(again) <= maxText {
			t.Errorf("what was read cannot be read again: %v", err)
		}
	})
}

func FuzzParse(f *testing.F) {
	b, err := Build(some(), ami.ArchX8664)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[flashHeader+storeHeader : 4096])
	f.Fuzz(func(t *testing.T, inner []byte) {
		flash, err := Build(nil, ami.ArchX8664)
		if err != nil {
			t.Fatal(err)
		}
		copy(flash[flashHeader+storeHeader:storeEnd], inner)
		vars, err := Parse(flash)
		if err != nil {
			return
		}
		for _, v := range vars {
			if len(v.Data) > storeEnd {
				t.Errorf("a variable of %d bytes", len(v.Data))
			}
		}
	})
}
