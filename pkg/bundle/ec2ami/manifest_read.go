package ec2ami

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
)

// ParseManifest reads a manifest of at most MaxManifest bytes. It says nothing of
// the signature; Verify does. All errors but those of r are InvalidManifest.
func ParseManifest(r io.Reader) (*Manifest, error) {
	raw, err := io.ReadAll(io.LimitReader(r, MaxManifest+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > MaxManifest {
		return nil, fault("The manifest is longer than %d MiB.", MaxManifest>>20)
	}
	p := parser{raw: raw, dec: xml.NewDecoder(bytes.NewReader(raw)), seen: map[string]bool{}}
	if err := p.document(); err != nil {
		return nil, err
	}
	return &p.m, p.check()
}

// parser walks through a manifest without keeping what it does not know.
type parser struct {
	raw  []byte
	dec  *xml.Decoder
	m    Manifest
	path []string        // of elements that are open
	seen map[string]bool // of the elements that may be there once

	version      string
	count, index string // attributes of parts and of the part that is open
	parts        []Part
	machine, img []byte // the elements that are signed
}

// maxDepth is how deep elements lie in one another.
const maxDepth = 16

func (p *parser) document() error {
	for {
		start := p.dec.InputOffset()
		tok, err := p.dec.Token()
		if errors.Is(err, io.EOF) {
			if !p.seen["manifest"] {
				return fault("The manifest is empty.")
			}
			return nil
		}
		if err != nil {
			return fault("The manifest is not well-formed XML: %w", err)
		}
		switch tok := tok.(type) {
		case xml.Directive:
			return fault("The manifest has a document type; manifests have none.")
		case xml.CharData:
			if len(p.path) == 0 && len(bytes.TrimSpace(bytes.TrimPrefix(tok, []byte("\ufeff")))) > 0 {
				return fault("There is text outside of the manifest.")
			}
		case xml.StartElement:
			if err := p.element(tok, start); err != nil {
				return err
			}
		case xml.EndElement: // of the root
			return fault("The manifest is not well-formed XML.")
		}
	}
}

// element reads an element that begins at start in the text, with all in it.
func (p *parser) element(el xml.StartElement, start int64) error {
	if len(p.path) >= maxDepth {
		return fault("The manifest's elements lie more than %d deep in one another.", maxDepth)
	}
	if el.Name.Space != "" {
		return fault("The manifest's element %s is in a name space; manifests have none.", quoted(el.Name.Local))
	}
	if len(p.path) == 0 && el.Name.Local != "manifest" {
		return fault("The file is no manifest: it begins with the element %s.", quoted(el.Name.Local))
	}
	local := el.Name.Local
	if len(local) > 64 { // none that is known; it would be copied with each element in it
		local = "?"
	}
	p.path = append(p.path, local)
	name := strings.Join(p.path, "/")
	kind := known[name]
	if kind == once || kind == value {
		if p.seen[name] {
			return fault("The manifest has the element %s twice.", name)
		}
		p.seen[name] = true
	}
	if err := p.open(name, el.Attr); err != nil {
		return err
	}
	text, err := p.inside(kind == value || kind == many)
	if err != nil {
		return err
	}
	if err := p.close(name, strings.TrimSpace(text), p.raw[start:p.dec.InputOffset()]); err != nil {
		return err
	}
	p.path = p.path[:len(p.path)-1]
	return nil
}

// inside reads up to the end of the element that is open and returns its text.
func (p *parser) inside(wanted bool) (string, error) {
	var text strings.Builder
	for {
		start := p.dec.InputOffset()
		tok, err := p.dec.Token()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return "", fault("The manifest is not well-formed XML, or a part of it is missing: %w", err)
		}
		switch tok := tok.(type) {
		case xml.Directive:
			return "", fault("The manifest has a document type; manifests have none.")
		case xml.CharData:
			if wanted && text.Len()+len(tok) > maxText {
				return "", fault("The manifest's element %s is longer than %d bytes.", strings.Join(p.path, "/"), maxText)
			}
			if wanted {
				text.Write(tok)
			}
		case xml.StartElement:
			if wanted {
				return "", fault("The manifest's element %s holds elements; it should be text.", strings.Join(p.path, "/"))
			}
			if err := p.element(tok, start); err != nil {
				return "", err
			}
		case xml.EndElement:
			return text.String(), nil
		}
	}
}

// What elements are.
type elementKind int

const (
	unknown elementKind = iota
	once                // holds elements, once
	value               // text, once
	many                // text, in lists
)

// known are the elements that are read, by their paths; any other is passed by.
var known = func() map[string]elementKind { //nolint:gochecknoglobals // nothing assigns it
	m := map[string]elementKind{}
	for _, s := range strings.Fields(`manifest manifest/machine_configuration manifest/image
		manifest/image/parts`) {
		m[s] = once
	}
	for _, s := range strings.Fields(`manifest/version manifest/signature
		manifest/bundler/name manifest/bundler/version manifest/bundler/release
		manifest/machine_configuration/architecture manifest/machine_configuration/kernel_id
		manifest/machine_configuration/ramdisk_id
		manifest/image/name manifest/image/user manifest/image/type manifest/image/kernel_name
		manifest/image/digest manifest/image/size manifest/image/bundled_size
		manifest/image/ec2_encrypted_key manifest/image/user_encrypted_key
		manifest/image/ec2_encrypted_iv manifest/image/user_encrypted_iv`) {
		m[s] = value
	}
	for _, s := range strings.Fields(`manifest/image/parts/part/filename manifest/image/parts/part/digest
		manifest/image/ancestry/ancestor_ami_id
		manifest/machine_configuration/block_device_mapping/mapping/virtual
		manifest/machine_configuration/block_device_mapping/mapping/device
		manifest/machine_configuration/block_device_mappings/block_device_mapping/virtual
		manifest/machine_configuration/block_device_mappings/block_device_mapping/device
		manifest/machine_configuration/product_codes/product_code
		manifest/machine_configuration/productcodes/product_code`) {
		m[s] = many
	}
	return m
}()

const mappings = "manifest/machine_configuration/block_device_mapping"

// open takes an element's attributes.
func (p *parser) open(name string, attrs []xml.Attr) error {
	attr := func(key string) string {
		i := slices.IndexFunc(attrs, func(a xml.Attr) bool { return a.Name.Space == "" && a.Name.Local == key })
		if i < 0 {
			return ""
		}
		return attrs[i].Value
	}
	switch name {
	case "manifest/image/parts":
		p.count = attr("count")
	case "manifest/image/parts/part":
		if len(p.parts) >= maxParts {
			return fault("The manifest names more than %d parts.", maxParts)
		}
		p.index = attr("index")
		p.parts = append(p.parts, Part{})
	case mappings + "/mapping", mappings + "s/block_device_mapping":
		if len(p.m.Machine.Mapping) >= maxList {
			return fault("The manifest maps more than %d devices.", maxList)
		}
		p.m.Machine.Mapping = append(p.m.Machine.Mapping, Mapping{})
	case "manifest/image/digest", "manifest/image/parts/part/digest":
		if a := attr("algorithm"); a != digestAlgorithm {
			return fault("The manifest's digests are by %s; %s is known.", quoted(a), digestAlgorithm)
		}
	case "manifest/image/ec2_encrypted_key", "manifest/image/user_encrypted_key":
		if a := attr("algorithm"); !strings.EqualFold(a, cipherAlgorithm) {
			return fault("The image is encrypted by %s; %s is known.", quoted(a), cipherAlgorithm)
		}
	}
	return nil
}

// close takes an element's text; raw is the whole element.
func (p *parser) close(name, text string, raw []byte) (err error) {
	m := &p.m
	switch strings.TrimPrefix(name, "manifest/") {
	case "version":
		p.version = text
	case "signature":
		m.signature, err = unhex(name, text)
	case "bundler/name":
		m.Bundler.Name = text
	case "bundler/version":
		m.Bundler.Version = text
	case "bundler/release":
		m.Bundler.Release = text
	case "machine_configuration":
		p.machine = raw
	case "machine_configuration/architecture":
		m.Machine.Architecture = text
	case "machine_configuration/kernel_id":
		m.Machine.KernelID = text
	case "machine_configuration/ramdisk_id":
		m.Machine.RamdiskID = text
	case "machine_configuration/product_codes/product_code", "machine_configuration/productcodes/product_code":
		return add(&m.Machine.ProductCodes, text)
	case "machine_configuration/block_device_mapping/mapping/virtual", "machine_configuration/block_device_mappings/block_device_mapping/virtual":
		m.Machine.Mapping[len(m.Machine.Mapping)-1].Virtual = text
	case "machine_configuration/block_device_mapping/mapping/device", "machine_configuration/block_device_mappings/block_device_mapping/device":
		m.Machine.Mapping[len(m.Machine.Mapping)-1].Device = text
	case "image":
		p.img = raw
	case "image/name":
		m.Name = text
	case "image/user":
		m.User = text
	case "image/type":
		m.Type = text
	case "image/kernel_name":
		m.KernelName = text
	case "image/ancestry/ancestor_ami_id":
		return add(&m.Ancestry, text)
	case "image/digest":
		m.Digest, err = sum(name, text)
	case "image/size":
		m.Size, err = number(name, text)
	case "image/bundled_size":
		m.BundledSize, err = number(name, text)
	case "image/ec2_encrypted_key":
		m.cloudKey, err = unhex(name, text)
	case "image/user_encrypted_key":
		m.userKey, err = unhex(name, text)
	case "image/ec2_encrypted_iv":
		m.cloudIV, err = unhex(name, text)
	case "image/user_encrypted_iv":
		m.userIV, err = unhex(name, text)
	case "image/parts/part/filename":
		p.parts[len(p.parts)-1].Name = text
	case "image/parts/part/digest":
		p.parts[len(p.parts)-1].Digest, err = sum(name, text)
	case "image/parts/part":
		if last := len(p.parts) - 1; p.index != strconv.Itoa(last) {
			return fault("The manifest's parts are out of order: the one of index %s is at place %d.", quoted(p.index), last)
		}
	}
	return err
}

func add(list *[]string, text string) error {
	if len(*list) >= maxList {
		return fault("The manifest has a list of more than %d.", maxList)
	}
	if text != "" { // some tools write empty elements
		*list = append(*list, text)
	}
	return nil
}

func unhex(name, text string) ([]byte, error) {
	b, err := hex.DecodeString(text)
	if err != nil {
		return nil, fault("The manifest's element %s is not hexadecimal.", name)
	}
	if len(b) == 0 {
		return nil, nil
	}
	return b, nil
}

func sum(name, text string) (sum [sha1.Size]byte, err error) {
	b, err := unhex(name, text)
	if err == nil && len(b) != len(sum) {
		err = fault("The manifest's element %s is no SHA-1.", name)
	}
	copy(sum[:], b)
	return sum, err
}

func number(name, text string) (int64, error) {
	n, err := strconv.ParseUint(text, 10, 62)
	if err != nil {
		return 0, fault("The manifest's element %s is no size: %s.", name, quoted(text))
	}
	return int64(n), nil
}

// quoted is text of a stranger's for a message.
func quoted(s string) string {
	if len(s) > 80 {
		s = s[:80] + "..."
	}
	return strconv.Quote(s)
}
