package ec2ami

import (
	"bytes"
	"context"
	"crypto/rsa"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// someBundle is a bundle of three parts, made once and never changed.
var someBundle = sync.OnceValue(func() *memory {
	store := newMemory()
	made(Write(context.Background(), input(store, picture(25<<20, nil))))
	return store
})

func someManifest() string { return string(someBundle().objects["web.manifest.xml"]) }

func TestManifestRefuses(t *testing.T) {
	good := someManifest()
	first := good[strings.Index(good, "<part index='0'>"):strings.Index(good, "<part index='1'>")]
	swap := func(old, with string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("the manifest has no %s", old)
		}
		return strings.Replace(good, old, with, 1)
	}
	between := func(from, to, with string) string {
		i := strings.Index(good, from) + len(from)
		return good[:i] + with + good[i+strings.Index(good[i:], to):]
	}
	tests := []struct{ name, text, want string }{
		{"nothing", "", "is empty"},
		{"no XML", "\x00\x01", "not well-formed"},
		{"another document", "<html/>", "it begins with the element \"html\""},
		{"cut off", good[:len(good)/2], "not well-formed XML, or a part of it is missing"},
		{"cut off at the end", strings.TrimSuffix(good, "</manifest>"), "not well-formed XML, or a part"},
		{"two", good + good[strings.Index(good, "<manifest>"):], "the element manifest twice"},
		{"text after it", good + "more", "text outside"},
		{"a document type", "<!DOCTYPE manifest [<!ENTITY a 'b'>]>" + good[strings.Index(good, "<manifest>"):], "document type"},
		{"a document type inside", swap("<bundler>", "<!DOCTYPE a><bundler>"), "document type"},
		{"an entity", swap("<version>2007-10-10", "<version>&laugh;2007-10-10"), "not well-formed"},
		{"another encoding", swap("<?xml version='1.0'?>", "<?xml version='1.0' encoding='UTF-7'?>"), "not well-formed"},
		{"a name space", swap("<manifest>", "<manifest xmlns='urn:a'>"), "name space"},
		{"deep", swap("<bundler>", strings.Repeat("<a>", 40)+strings.Repeat("</a>", 40)+"<bundler>"), "deep in one another"},
		{"another version", swap("2007-10-10", "2006-05-01"), "of version \"2006-05-01\""},
		{"no version", swap("<version>2007-10-10</version>", ""), "of version \"\""},
		{"two images", swap("<image>", "<image></image><image>"), "manifest/image twice"},
		{"two names", swap("<name>web</name>", "<name>web</name><name>web</name>"), "manifest/image/name twice"},
		{"two lists of parts", swap("<parts ", "<parts count='0'></parts><parts "), "manifest/image/parts twice"},
		{"no name", swap("<name>web</name>", ""), "no element image/name"},
		{"a name in a folder", swap("<name>web</name>", "<name>../web</name>"), "no name of a file"},
		{"a name of bytes", swap("<name>web</name>", "<name>w&#9;eb</name>"), "no name of a file"},
		{"elements in a text", swap("<name>web</name>", "<name>w<b/>eb</name>"), "should be text"},
		{"a long text", swap("<name>web</name>", "<name>"+strings.Repeat("a", maxText+1)+"</name>"), "longer than"},
		{"another type", swap("<type>machine<", "<type>toaster<"), "of type \"toaster\""},
		{"another digest", swap("<digest algorithm='SHA1'>", "<digest algorithm='MD5'>"), "by \"MD5\""},
		{"a digest of nothing", between("<digest algorithm='SHA1'>", "<", ""), "is no SHA-1"},
		{"a digest in other letters", between("<digest algorithm='SHA1'>", "<", strings.Repeat("zz", 20)), "not hexadecimal"},
		{"another cipher", swap("<user_encrypted_key algorithm='AES-128-CBC'>", "<user_encrypted_key algorithm='ROT13'>"), "encrypted by \"ROT13\""},
		{"no size", between("<size>", "<", ""), "is no size"},
		{"a size of none", between("<size>", "<", "0"), "not from 1 byte"},
		{"a negative size", between("<size>", "<", "-1"), "is no size"},
		{"an absurd size", between("<size>", "<", "1099511627777"), "not from 1 byte"},
		{"a size beyond all", between("<size>", "<", "99999999999999999999"), "is no size"},
		{"too large a bundle", between("<bundled_size>", "<", "31457296"), "cannot be the 31457296 bytes"},
		{"too small a bundle", between("<bundled_size>", "<", "2"), "cannot be the 2 bytes"},
		{"not of blocks", between("<bundled_size>", "<", "1001"), "multiple of 16"},
		{"an unnamed device", between("<virtual>", "<", ""), "device without a name"},
		{"too many devices", swap("<mapping>", strings.Repeat("<mapping><virtual>a</virtual><device>b</device></mapping>", maxList+1)+"<mapping>"), "more than 1024 devices"},
		{"too many codes", swap("<product_codes>", "<product_codes>"+strings.Repeat("<product_code>a</product_code>", maxList+1)), "list of more than 1024"},
		{"no parts", between("<parts count='3'>", "</parts>", ""), "3\" parts, and names 0"},
		{"none at all", strings.Replace(between("<parts count='3'>", "</parts>", ""), "count='3'", "count='0'", 1), "names no parts"},
		{"no user", between("<user>", "<", ""), "has no user"},
		{"fewer parts", swap("count='3'", "count='2'"), "\"2\" parts, and names 3"},
		{"absurd parts", swap("count='3'", "count='4294967296'"), "\"4294967296\" parts, and names 3"},
		{"a part twice", swap(first, first+strings.Replace(first, "'0'", "'1'", 1)), "out of order"},
		{"a name twice", swap("<filename>web.part.01", "<filename>web.part.00"), "\"web.part.00\" twice"},
		{"out of order", swap("index='1'", "index='2'"), "index \"2\" is at place 1"},
		{"without an index", swap(" index='1'", ""), "index \"\" is at place 1"},
		{"an index like one", swap("index='1'", "index='01'"), "index \"01\" is at place 1"},
		{"a part elsewhere", swap("web.part.01", "../web.part.01"), "no name of a file"},
		{"a part without a name", swap("<filename>web.part.01</filename>", ""), "no name of a file"},
		{"a part without a digest", strings.Replace(good, first, first[:strings.Index(first, "<digest")]+"</part>", 1), "has no digest"},
		{"a signature that is none", between("<signature>", "<", "xyz"), "not hexadecimal"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseManifest(strings.NewReader(tt.text))
			if ami.ErrorCode(err) != ami.CodeInvalidManifest || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
	if _, err := ParseManifest(strings.NewReader(good)); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

// What a manifest costs is bounded by what it may be long, not by what it says.
func TestManifestBombs(t *testing.T) {
	const long = MaxManifest / 8
	tests := []struct{ name, text string }{
		{"too long", "<manifest>" + strings.Repeat(" ", MaxManifest) + "</manifest>"},
		{"many elements", "<manifest>" + strings.Repeat("<a/>", long/4) + "</manifest>"},
		{"a long name with many in it", "<manifest><" + strings.Repeat("a", long/4) + ">" + strings.Repeat("<b/>", long/8)},
		{"many parts", "<manifest><image><parts>" + strings.Repeat("<part>", 14) + strings.Repeat("<part/>", long/8)},
		{"many attributes", "<manifest " + strings.Repeat("a='' ", long/6) + "/>"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := ParseManifest(strings.NewReader(tt.text))
			runtime.ReadMemStats(&after)
			if ami.ErrorCode(err) != ami.CodeInvalidManifest {
				t.Errorf("got %v", err)
			}
			// All that was ever taken, most of it given back at once.
			if got := after.TotalAlloc - before.TotalAlloc; got > 8*MaxManifest {
				t.Errorf("took %d MiB", got>>20)
			}
		})
	}
}

func TestBothSpellings(t *testing.T) {
	good := someManifest()
	i, j := strings.Index(good, "<block_device_mapping>"), strings.Index(good, "</block_device_mapping>")
	other := strings.NewReplacer("block_device_mapping>", "block_device_mappings>", "mapping>", "block_device_mapping>", "product_codes>", "productcodes>").
		Replace(good[i:j] + "</block_device_mapping>")
	other = good[:i] + other + good[j+len("</block_device_mapping>"):]
	other = strings.Replace(other, "product_codes>", "productcodes>", 2)
	want, err := ParseManifest(strings.NewReader(good))
	must(t, err)
	got, err := ParseManifest(strings.NewReader(other))
	must(t, err)
	if len(want.Machine.Mapping) != 3 || !reflect.DeepEqual(got.Machine, want.Machine) {
		t.Errorf("got %+v, want %+v", got.Machine, want.Machine)
	}
}

// What others write between the elements, or besides, does not matter, except in
// what is signed.
func TestManifestForgives(t *testing.T) {
	good := someManifest()
	text := "\ufeff" + strings.NewReplacer("<version>", "\n  <version>", "</bundler>", "</bundler>\n  <!-- <image> -->\n<later><and>more</and></later>",
		"<signature>", "\r\n<signature>\n ", "</signature>", "\n</signature>\n").Replace(good) + "\n"
	m, err := ParseManifest(strings.NewReader(text))
	must(t, err)
	must(t, m.Verify(user().cert))
	if m.Verify(cloud().cert) == nil {
		t.Error("somebody else's certificate verifies it")
	}
	inside := strings.Replace(good, "<image><name>", "<image> <name>", 1)
	m, err = ParseManifest(strings.NewReader(inside))
	must(t, err)
	if err := m.Verify(user().cert); ami.ErrorCode(err) != ami.CodeInvalidManifest {
		t.Errorf("got %v for what was changed", err)
	}
}

// A kernel's manifest says nothing of a machine.
func TestManifestWithoutAMachine(t *testing.T) {
	good := someManifest()
	i, j := strings.Index(good, "<machine_configuration>"), strings.Index(good, "<image>")
	m, err := ParseManifest(strings.NewReader(good[:i] + good[j:]))
	must(t, err)
	if !reflect.DeepEqual(m.Machine, Machine{}) || !bytes.HasPrefix(m.signed, []byte("<image>")) {
		t.Errorf("got %+v", m.Machine)
	}
}

func FuzzManifest(f *testing.F) {
	f.Add(someManifest())
	f.Add("<manifest><version>2007-10-10</version><image/></manifest>")
	f.Add("<?xml version='1.0'?><!DOCTYPE a><manifest/>")
	key := []*rsa.PrivateKey{user().key}
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 1<<20 {
			return
		}
		m, err := ParseManifest(strings.NewReader(text))
		if err != nil {
			if ami.ErrorCode(err) != ami.CodeInvalidManifest {
				t.Fatalf("got %v", err)
			}
			return
		}
		_, _, _ = m.unlock(key)
		// What was read can be written, and is read as the same.
		out, err := m.marshal(user().key)
		must(t, err)
		again, err := ParseManifest(bytes.NewReader(out))
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		must(t, again.Verify(user().cert))
		for _, m := range []*Manifest{m, again} {
			m.signed, m.signature = nil, nil
		}
		if !reflect.DeepEqual(again, m) {
			t.Fatalf("got %+v, want %+v", again, m)
		}
	})
}
