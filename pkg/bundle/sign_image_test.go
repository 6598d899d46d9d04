package bundle

import (
	"bytes"
	"encoding/base64"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What minisign 0.11 wrote: minisign -G -W, and minisign -S of manifestOf.
const (
	minisignPub = `untrusted comment: minisign public key 3E7DAEA4849CA82A
RWQqqJyEpK59PhJzB/tgQqQgEsaPWqYBUvrr602peTcCrikAVztoHIg4
`
	minisignSec = `untrusted comment: minisign encrypted secret key
RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAKqichKSufT7itaFVpkoJmTsPrUYuxlwn8dcAnRSGWZF305OyUkCxEBJzB/tgQqQgEsaPWqYBUvrr602peTcCrikAVztoHIg4AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
`
	minisignSig = `untrusted comment: signature from minisign secret key
RUQqqJyEpK59PpuIHTL0w4bMRHCSIn0qvPFv8X9ycfs98F+AQ6QacphXP7tqcbCzMCUso4bSmOwptttX8HEEs53OphL6n8Qqsg4=
trusted comment: timestamp:1795281988	file:m.txt	hashed
0E7kCiWk90Mv7pDrUAtuI0GQHv/rmfIO1uDklCnGDQcWG3eHu+5Y85A++OQHdAErx9pMdXaKn6yBegRxjKvfAQ==
`
	manifestOf = "kami-image 1\nx y\n"
)

// TestMinisign: what minisign has signed is taken, and what is signed here with its key
// is as it would have been, but for the comment.
func TestMinisign(t *testing.T) {
	known, err := ParseKeys([]byte(minisignPub))
	must(t, err)
	got, format, err := VerifyImage([]byte(manifestOf), []byte(minisignSig), known...)
	if err != nil || format != FormatMinisign || got.Comment != "minisign 3E7DAEA4849CA82A" {
		t.Errorf("got %+v, %q, %v", got, format, err)
	}
	key, err := ParseImageSigner([]byte(minisignSec))
	must(t, err)
	if !key.PublicKey().Same(known[0]) {
		t.Errorf("got the key %s, want %s", key.PublicKey().Fingerprint, known[0].Fingerprint)
	}
	ours, format, err := key.Sign([]byte(manifestOf))
	must(t, err)
	if mine, theirs := strings.Split(string(ours), "\n")[1], strings.Split(minisignSig, "\n")[1]; format != FormatMinisign || mine != theirs {
		t.Errorf("got the signature %s, want %s", mine, theirs)
	}
	// A key read back from the store of those that are trusted is the same one.
	ring := OpenKeyring(filepath.Join(t.TempDir(), "keys"))
	must(t, ring.Add(t.Context(), known))
	stored, err := ring.Trusted()
	must(t, err)
	if _, _, err := VerifyImage([]byte(manifestOf), ours, stored...); err != nil {
		t.Errorf("got %v of a key that is trusted", err)
	}
	edit := func(line int, to func(string) string) []byte {
		lines := strings.Split(string(ours), "\n")
		lines[line] = to(lines[line])
		return []byte(strings.Join(lines, "\n"))
	}
	flip := func(s string) string {
		b, err := base64.StdEncoding.DecodeString(s)
		must(t, err)
		b[len(b)-1] ^= 1
		return base64.StdEncoding.EncodeToString(b)
	}
	for name, sig := range map[string][]byte{
		"the signature":      edit(1, flip),
		"the comment":        edit(2, func(s string) string { return s + "!" }),
		"its signature":      edit(3, flip),
		"no comment":         edit(2, func(string) string { return "" }),
		"short":              edit(1, func(s string) string { return s[:20] }),
		"no base64":          edit(1, func(string) string { return "*" }),
		"another algorithm":  edit(1, func(s string) string { return "AA" + s[2:] }),
		"a line more":        append(bytes.Clone(ours), "more\n"...),
		"large":              append(bytes.Clone(ours), make([]byte, maxSignature)...),
		"nothing":            nil,
		"only what it is of": []byte(manifestOf),
	} {
		if _, _, err := VerifyImage([]byte(manifestOf), sig, known...); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: got %v, want ErrSignature", name, err)
		}
	}
	for name, try := range map[string]func() error{
		"another manifest": func() error { _, _, err := VerifyImage([]byte("kami-image 1\n"), ours, known...); return err },
		"no candidate":     func() error { _, _, err := VerifyImage([]byte(manifestOf), ours); return err },
		"another candidate": func() error {
			_, _, err := VerifyImage([]byte(manifestOf), ours, trustedKey(newKey(t).PublicKey(), "", false))
			return err
		},
	} {
		if err := try(); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: got %v, want ErrSignature", name, err)
		}
	}
}

func TestImageSignerRefuses(t *testing.T) {
	secret := func(edit func(b []byte)) []byte {
		head, line, _ := strings.Cut(strings.TrimSpace(minisignSec), "\n")
		b, err := base64.StdEncoding.DecodeString(line)
		must(t, err)
		edit(b)
		return []byte(head + "\n" + base64.StdEncoding.EncodeToString(b) + "\n")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "k")
	if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", path).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", path+"2").CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	for name, tt := range map[string]struct {
		key  []byte
		want error
	}{
		"no key":             {[]byte("key"), ErrBadKey},
		"ecdsa":              {readAll(t, path+"2"), ErrBadKey},
		"a passphrase":       {readAll(t, path), ErrEncryptedKey},
		"a public key":       {[]byte(minisignPub), ErrBadKey},
		"minisign, locked":   {secret(func(b []byte) { copy(b[2:], "Sc") }), ErrEncryptedKey},
		"minisign, halves":   {secret(func(b []byte) { b[110] ^= 1 }), ErrBadKey}, // of two keys
		"minisign, cut":      {[]byte(minisignSec[:100]), ErrBadKey},
		"minisign, one line": {[]byte("untrusted comment: x\n"), ErrBadKey},
	} {
		if _, err := ParseImageSigner(tt.key); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", name, err, tt.want)
		}
	}
	if _, err := ParseKeys([]byte("untrusted comment: x\nAAAA\n")); !errors.Is(err, ErrBadKey) {
		t.Errorf("got %v of a public key that is none", err)
	}
}

// TestSSHKeygenVerifiesImages: what we sign, ssh-keygen takes with the file of those who
// are trusted; what it signs, we take. Of a bundle's manifest it is neither.
func TestSSHKeygenVerifiesImages(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "id")
	if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	signer, err := ParseImageSigner(readAll(t, path))
	must(t, err)
	ring := OpenKeyring(filepath.Join(dir, "keys"))
	keys, err := ParseKeys(readAll(t, path+".pub"))
	must(t, err)
	must(t, ring.Add(t.Context(), keys))
	sig, format, err := signer.Sign([]byte(manifestOf))
	must(t, err)
	if format != FormatSSH {
		t.Errorf("got the format %q, want %q", format, FormatSSH)
	}
	must(t, os.WriteFile(filepath.Join(dir, "m.sig"), sig, 0o600))
	cmd := exec.CommandContext(t.Context(), "ssh-keygen", "-Y", "verify", "-f", ring.TrustedPath(), "-I", Signer, "-n", ImageNamespace, "-s", filepath.Join(dir, "m.sig"))
	cmd.Stdin = strings.NewReader(manifestOf)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("ssh-keygen: %v\n%s", err, out)
	}
	theirs := filepath.Join(dir, "m")
	must(t, os.WriteFile(theirs, []byte(manifestOf), 0o600))
	if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-Y", "sign", "-f", path, "-n", ImageNamespace, theirs).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	got, format, err := VerifyImage([]byte(manifestOf), readAll(t, theirs+".sig"))
	if err != nil || format != FormatSSH || !got.Same(signer.PublicKey()) {
		t.Errorf("got %+v, %q, %v for what ssh-keygen has signed", got, format, err)
	}
	if _, _, err := VerifyImage([]byte(manifestOf+"\n"), sig); !errors.Is(err, ErrSignature) {
		t.Errorf("got %v for another manifest", err)
	}
	trust, err := ring.Trust(false)
	must(t, err)
	if _, err := trust.verify([]byte(manifestOf), sig); !errors.Is(err, ErrSignature) {
		t.Errorf("got %v for an image's signature as a bundle's", err)
	}
	bundles, err := Sign(signer.ssh, []byte(manifestOf))
	must(t, err)
	if _, _, err := VerifyImage([]byte(manifestOf), bundles); !errors.Is(err, ErrSignature) {
		t.Errorf("got %v for a bundle's signature as an image's", err)
	}
}
