package ec2ami

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"encoding/hex"
	"encoding/xml"
	"strconv"
	"strings"
)

// marshal writes a manifest that key signs, and keeps the signature. The text is as
// ec2-ami-tools write it: no white space, attributes in single quotes, since a tool
// that parses it and writes it again before it verifies gets the same bytes.
func (m *Manifest) marshal(key *rsa.PrivateKey) ([]byte, error) {
	m.signed = []byte(m.machineXML() + m.imageXML())
	sum := sha1.Sum(m.signed)
	var err error
	if m.signature, err = rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA1, sum[:]); err != nil {
		return nil, err
	}
	var w element
	w.put("version", Version)
	w.WriteString("<bundler>")
	w.put("name", m.Bundler.Name)
	w.put("version", m.Bundler.Version)
	w.put("release", m.Bundler.Release)
	w.WriteString("</bundler>")
	w.Write(m.signed)
	w.put("signature", hex.EncodeToString(m.signature))
	return []byte("<?xml version='1.0'?><manifest>" + w.String() + "</manifest>"), nil
}

// element is the inside of an element.
type element struct{ strings.Builder }

// put adds an element with a text; attrs are names and values. One without a text
// is left out.
func (w *element) put(name, text string, attrs ...string) {
	if text == "" {
		return
	}
	w.WriteString("<" + name)
	for i := 0; i < len(attrs); i += 2 {
		w.WriteString(" " + attrs[i] + "='" + attrs[i+1] + "'")
	}
	w.WriteString(">")
	_ = xml.EscapeText(w, []byte(text)) // a Builder takes all
	w.WriteString("</" + name + ">")
}

func (m *Manifest) machineXML() string {
	var w element
	w.put("architecture", m.Machine.Architecture)
	if len(m.Machine.Mapping) > 0 {
		w.WriteString("<block_device_mapping>")
		for _, d := range m.Machine.Mapping {
			w.WriteString("<mapping>")
			w.put("virtual", d.Virtual)
			w.put("device", d.Device)
			w.WriteString("</mapping>")
		}
		w.WriteString("</block_device_mapping>")
	}
	w.put("kernel_id", m.Machine.KernelID)
	w.put("ramdisk_id", m.Machine.RamdiskID)
	if len(m.Machine.ProductCodes) > 0 {
		w.WriteString("<product_codes>")
		for _, code := range m.Machine.ProductCodes {
			w.put("product_code", code)
		}
		w.WriteString("</product_codes>")
	}
	return "<machine_configuration>" + w.String() + "</machine_configuration>"
}

func (m *Manifest) imageXML() string {
	var w element
	w.put("name", m.Name)
	w.put("user", m.User)
	w.put("type", m.Type)
	w.put("kernel_name", m.KernelName)
	if len(m.Ancestry) > 0 {
		w.WriteString("<ancestry>")
		for _, id := range m.Ancestry {
			w.put("ancestor_ami_id", id)
		}
		w.WriteString("</ancestry>")
	}
	w.put("digest", text(m.Digest), "algorithm", digestAlgorithm)
	w.put("size", strconv.FormatInt(m.Size, 10))
	w.put("bundled_size", strconv.FormatInt(m.BundledSize, 10))
	w.put("ec2_encrypted_key", hex.EncodeToString(m.cloudKey), "algorithm", cipherAlgorithm)
	w.put("user_encrypted_key", hex.EncodeToString(m.userKey), "algorithm", cipherAlgorithm)
	w.put("ec2_encrypted_iv", hex.EncodeToString(m.cloudIV))
	w.put("user_encrypted_iv", hex.EncodeToString(m.userIV))
	w.WriteString("<parts count='" + strconv.Itoa(len(m.Parts)) + "'>")
	for i, part := range m.Parts {
		w.WriteString("<part index='" + strconv.Itoa(i) + "'>")
		w.put("filename", part.Name)
		w.put("digest", text(part.Digest), "algorithm", digestAlgorithm)
		w.WriteString("</part>")
	}
	w.WriteString("</parts>")
	return "<image>" + w.String() + "</image>"
}
