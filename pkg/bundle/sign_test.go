package bundle

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/crypto/ssh"
)

// TestSSHKeygenVerifies: what we sign, ssh-keygen takes; what it signs, we take.
func TestSSHKeygenVerifies(t *testing.T) {
	dir := t.TempDir()
	ring := OpenKeyring(filepath.Join(dir, "keys"))
	key, err := ring.Key(t.Context(), "test")
	must(t, err)
	must(t, ring.Add(t.Context(), []TrustedKey{trustedKey(key.PublicKey(), "somebody", false)}))
	other := OpenKeyring(filepath.Join(dir, "other"))
	keys, err := ParseKeys([]byte("# theirs\n" + trustedKey(key.PublicKey(), "", false).PublicKey + " a comment\n"))
	must(t, err)
	must(t, other.Add(t.Context(), keys))

	message := []byte("a manifest\n")
	sig, err := Sign(key, message)
	must(t, err)
	sigPath := filepath.Join(dir, "m.sig")
	must(t, os.WriteFile(sigPath, sig, 0o600))
	cmd := exec.CommandContext(t.Context(), "ssh-keygen", "-Y", "verify", "-f", other.TrustedPath(), "-I", Signer, "-n", SignatureNamespace, "-s", sigPath)
	cmd.Stdin = bytes.NewReader(message)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("ssh-keygen: %v\n%s", err, out)
	}
	msgPath := filepath.Join(dir, "theirs")
	must(t, os.WriteFile(msgPath, message, 0o600))
	if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-Y", "sign", "-f", filepath.Join(dir, "keys", keyFile), "-n", SignatureNamespace, msgPath).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	trust, err := other.Trust(false)
	must(t, err)
	if _, err := trust.verify(message, readAll(t, msgPath+".sig")); err != nil {
		t.Errorf("got %v for what ssh-keygen has signed", err)
	}
}

func TestVerifyRefuses(t *testing.T) {
	key := newKey(t)
	trust := trusting(key)
	message := []byte("a manifest")
	sig, err := Sign(key, message)
	must(t, err)
	block, _ := pem.Decode(sig)
	reseal := func(change func(b []byte) []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: sigArmor, Bytes: change(bytes.Clone(block.Bytes))})
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	rsaSigner, err := ssh.NewSignerFromKey(rsaKey)
	must(t, err)
	byRSA, err := Sign(rsaSigner, message)
	must(t, err)
	foreign, err := Sign(newKey(t), message)
	must(t, err)
	for name, c := range map[string]struct {
		message, sig []byte
		want         error
	}{
		"right":             {message, sig, nil},
		"another message":   {[]byte("a Manifest"), sig, ErrSignature},
		"empty":             {message, nil, ErrSignature},
		"text":              {message, []byte("signed, me"), ErrSignature},
		"something behind":  {message, append(bytes.Clone(sig), "x"...), ErrSignature},
		"a bit":             {message, reseal(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }), ErrSignature},
		"cut off":           {message, reseal(func(b []byte) []byte { return b[:len(b)-10] }), ErrSignature},
		"another namespace": {message, reseal(func(b []byte) []byte { return bytes.Replace(b, []byte(SignatureNamespace), []byte("kami-bunble"), 1) }), ErrSignature},
		"rsa":               {message, byRSA, ErrSignature},
		"foreign":           {message, foreign, ErrUntrusted},
	} {
		if _, err := trust.verify(c.message, c.sig); !errors.Is(err, c.want) || (err != nil) != (c.want != nil) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestKeyring(t *testing.T) {
	ring := OpenKeyring(filepath.Join(t.TempDir(), "keys"))
	if all, err := ring.Trusted(); err != nil || len(all) != 0 {
		t.Errorf("got %v, %v before there is a key", all, err)
	}
	got := make(chan string, 4)
	for range cap(got) {
		go func() {
			k, err := ring.Key(t.Context(), "x")
			if err != nil {
				got <- err.Error()
				return
			}
			got <- Fingerprint(k.PublicKey())
		}()
	}
	first := <-got
	for range cap(got) - 1 {
		if other := <-got; other != first {
			t.Errorf("got the keys %s and %s at once", first, other)
		}
	}
	st, err := os.Stat(filepath.Join(ring.dir, keyFile))
	must(t, err)
	if st.Mode().Perm() != 0o600 {
		t.Errorf("the key has the mode %v", st.Mode())
	}
	theirs := trustedKey(newKey(t).PublicKey(), "theirs\x1b[2J", false)
	keys, err := ParseKeys([]byte(theirs.PublicKey + " " + theirs.Comment))
	must(t, err)
	for range 2 {
		must(t, ring.Add(t.Context(), keys))
	}
	all, err := ring.Trusted()
	must(t, err)
	if len(all) != 2 || !all[0].Own || all[1].Own || all[1].Comment != "theirs[2J" {
		t.Errorf("got %+v", all)
	}
	must(t, ring.Remove(t.Context(), theirs.Fingerprint))
	if err := ring.Remove(t.Context(), theirs.Fingerprint); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v for a key that is gone", err)
	}
	if err := ring.Remove(t.Context(), first); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v for the own key", err)
	}
	for name, text := range map[string]string{"nothing": "\n", "text": "hello", "rsa": "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC7 x", "private": "-----BEGIN OPENSSH PRIVATE KEY-----"} {
		if _, err := ParseKeys([]byte(text)); !errors.Is(err, ErrBadKey) {
			t.Errorf("%s: got %v, want ErrBadKey", name, err)
		}
	}
}
