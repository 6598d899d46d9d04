package ec2ami

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

func TestPrivateKeys(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	ecDER, err := x509.MarshalPKCS8PrivateKey(ec)
	must(t, err)
	rsaDER, err := x509.MarshalPKCS8PrivateKey(user().key)
	must(t, err)
	block := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	tests := []struct{ name, text, want string }{
		{"as of old", string(user().pem), ""},
		{"PKCS#8", block("PRIVATE KEY", rsaDER), ""},
		{"with its certificate", string(user().pemC) + string(user().pem), ""},
		{"nothing", "", "no private key in it"},
		{"a certificate", string(user().pemC), "no private key in it"},
		{"another kind", block("PRIVATE KEY", ecDER), "not an RSA key"},
		{"damaged", block("RSA PRIVATE KEY", rsaDER[:100]), "cannot be read"},
		{"locked", "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n", "passphrase"},
		{"locked, PKCS#8", block("ENCRYPTED PRIVATE KEY", rsaDER), "passphrase"},
	}
	for _, tt := range tests {
		key, err := ParsePrivateKey("pk.pem", []byte(tt.text))
		if tt.want == "" && (err != nil || !key.Equal(user().key)) {
			t.Errorf("%s: got %v", tt.name, err)
		}
		if tt.want != "" && (ami.ErrorCode(err) != ami.CodeInvalidKeyFormat || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
	}
}

func TestCertificates(t *testing.T) {
	damaged := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("no")})
	tests := []struct{ name, text, want string }{
		{"one", string(user().pemC), ""},
		{"after a key", string(user().pem) + string(user().pemC), ""},
		{"nothing", "", "no certificate in it"},
		{"a key", string(user().pem), "no certificate in it"},
		{"damaged", string(damaged), "cannot be read"},
	}
	for _, tt := range tests {
		cert, err := ParseCertificate("cert.pem", []byte(tt.text))
		if tt.want == "" && (err != nil || !cert.Equal(user().cert)) {
			t.Errorf("%s: got %v", tt.name, err)
		}
		if tt.want != "" && (ami.ErrorCode(err) != ami.CodeInvalidKeyFormat || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
	}
}

// Pairs as people made them then: openssl's, of 1024 bits, signed by SHA-1, expired.
func TestOldPairs(t *testing.T) {
	dir := t.TempDir()
	key, cert := filepath.Join(dir, "pk.pem"), filepath.Join(dir, "cert.pem")
	for _, bits := range []string{"1024", "512"} {
		cmd := exec.CommandContext(t.Context(), "openssl", "req", "-x509", "-newkey", "rsa:"+bits, "-nodes", "-sha1", "-days", "1",
			"-subj", "/C=US/O=AWS-Developers/CN=somebody", "-keyout", key, "-out", cert)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		keyText, err := os.ReadFile(key)
		must(t, err)
		certText, err := os.ReadFile(cert)
		must(t, err)
		priv, err := ParsePrivateKey(key, keyText)
		public, cerr := ParseCertificate(cert, certText)
		if bits == "512" {
			if ami.ErrorCode(err) != ami.CodeInvalidKeyFormat || ami.ErrorCode(cerr) != ami.CodeInvalidKeyFormat {
				t.Errorf("got %v and %v", err, cerr)
			}
			continue
		}
		must(t, err)
		must(t, cerr)
		store := newMemory()
		in := input(store, []byte("an image"))
		in.Key, in.Cert, in.Cloud = priv, public, public
		must(t, second(Write(t.Context(), in)))
		open := openInput(store)
		open.Keys[0], open.Signers[0] = priv, public
		got, _, err := unpack(t, open)
		if must(t, err); string(got) != "an image" {
			t.Errorf("got %q", got)
		}
	}
}
