package region

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/md5"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"

	"github.com/kamivm/kami/pkg/ami"
)

// fingerprint writes a sum as EC2 does.
func fingerprint(sum []byte) string { return strings.ReplaceAll(fmt.Sprintf("% x", sum), " ", ":") }

func TestCreateKeyPair(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	for _, kind := range []string{"", "ed25519", "rsa"} {
		t.Run(kind, func(t *testing.T) {
			name := "a key / " + kind
			key, text, err := r.CreateKeyPair(t.Context(), name, kind, false)
			must(t, err)
			private, err := ssh.ParseRawPrivateKey(text)
			must(t, err)
			signer, err := ssh.ParsePrivateKey(text)
			must(t, err)
			public := signer.PublicKey()
			want := ami.KeyPair{
				KeyPairID: key.KeyPairID, KeyName: name, KeyType: "ed25519", OwnerID: ami.DefaultAccount, CreateTime: key.CreateTime,
				PublicKey: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public))) + " " + name,
				// As ssh-keygen -l has it, but for the padding.
				KeyFingerprint: strings.TrimPrefix(ssh.FingerprintSHA256(public), "SHA256:") + "=",
			}
			if k, ok := private.(*rsa.PrivateKey); ok {
				der, err := x509.MarshalPKCS8PrivateKey(k)
				must(t, err)
				sum := sha1.Sum(der)
				want.KeyType, want.KeyFingerprint = "rsa", fingerprint(sum[:])
				if k.N.BitLen() != 2048 {
					t.Errorf("got a key of %d bits, want 2048", k.N.BitLen())
				}
			}
			if diff := cmp.Diff(want, key); diff != "" {
				t.Errorf("key (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(key, get(r.keyPair(t.Context(), name))(t)); diff != "" {
				t.Errorf("record (-returned +recorded):\n%s", diff)
			}
			kept := r.privateKeyPath(name)
			b, err := os.ReadFile(kept)
			must(t, err)
			info, err := os.Stat(kept)
			must(t, err)
			if string(b) != string(text) || info.Mode().Perm() != 0o600 {
				t.Errorf("the private key is kept with the mode %o, and as it was returned: %v; want 600 and yes", info.Mode().Perm(), string(b) == string(text))
			}
			_, _, err = r.CreateKeyPair(t.Context(), name, kind, false)
			wantCode(t, err, ami.CodeInvalidKeyPairDuplicate)
			must(t, r.DeleteKeyPair(t.Context(), name, false))
			if _, err := os.Stat(kept); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the private key is still kept: %v", err)
			}
			must(t, r.DeleteKeyPair(t.Context(), name, false))
		})
	}
}

func authorized(t *testing.T, public any) []byte {
	t.Helper()
	k, err := ssh.NewPublicKey(public)
	must(t, err)
	return append(ssh.MarshalAuthorizedKey(k)[:len(ssh.MarshalAuthorizedKey(k))-1], " me@there\n"...)
}

func TestImportKeyPair(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	rs, err := rsa.GenerateKey(rand.Reader, 3072)
	must(t, err)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	der, err := x509.MarshalPKIXPublicKey(&rs.PublicKey)
	must(t, err)
	sum := md5.Sum(der)
	edKey, err := ssh.NewPublicKey(ed)
	must(t, err)
	block, err := ssh.MarshalPrivateKey(rs, "")
	must(t, err)
	tests := []struct {
		name, key   string
		kind, print string
		code        ami.Code
	}{
		{"ed25519", string(authorized(t, ed)), "ed25519", strings.TrimPrefix(ssh.FingerprintSHA256(edKey), "SHA256:") + "=", ""},
		{"rsa", string(authorized(t, &rs.PublicKey)), "rsa", fingerprint(sum[:]), ""},
		{"with options", `no-pty,command="x" ` + string(authorized(t, ed)), "ed25519", strings.TrimPrefix(ssh.FingerprintSHA256(edKey), "SHA256:") + "=", ""},
		{"ecdsa", string(authorized(t, &ec.PublicKey)), "", "", ami.CodeInvalidKeyFormat},
		{"a private key", string(block.Bytes), "", "", ami.CodeInvalidKeyFormat},
		{"nothing", "", "", "", ami.CodeInvalidKeyFormat},
		{"half a key", string(authorized(t, ed))[:40], "", "", ami.CodeInvalidKeyFormat},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := r.ImportKeyPair(t.Context(), tt.name, []byte(tt.key), false)
			wantCode(t, err, tt.code)
			if got.KeyType != tt.kind || got.KeyFingerprint != tt.print {
				t.Errorf("got %q with the fingerprint %q, want %q with %q", got.KeyType, got.KeyFingerprint, tt.kind, tt.print)
			}
			if tt.code != "" {
				_, err := r.keyPair(t.Context(), tt.name)
				wantCode(t, err, ami.CodeInvalidKeyPairNotFound)
				return
			}
			if path := r.privateKeyPath(tt.name); path != "" {
				t.Errorf("a private key is kept at %s, and nobody has given one", path)
			}
			_, err = r.ImportKeyPair(t.Context(), tt.name, []byte(tt.key), false)
			wantCode(t, err, ami.CodeInvalidKeyPairDuplicate)
		})
	}
}

func TestKeyNames(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	tests := []struct {
		name, kind string
		code       ami.Code
	}{
		{"", "", ami.CodeInvalidParameterValue},
		{strings.Repeat("x", 256), "", ami.CodeInvalidParameterValue},
		{"two\nlines", "", ami.CodeInvalidParameterValue},
		{"schlüssel", "", ami.CodeInvalidParameterValue},
		{"dsa", "dsa", ami.CodeInvalidParameterValue},
		{strings.Repeat("x", 60) + "/../../../x", "", ""}, // names are no paths
	}
	for _, tt := range tests {
		_, _, err := r.CreateKeyPair(t.Context(), tt.name, tt.kind, false)
		if got := ami.ErrorCode(err); got != tt.code {
			t.Errorf("CreateKeyPair(%q, %q): got %v, want %q", tt.name, tt.kind, err, tt.code)
		}
	}
}

// The guest of a launch with a key learns of its public half, and kami ssh of
// the private one.
func TestLaunchWithKey(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	i := image(t, r, "base")
	must(t, r.CreateTags(t.Context(), []string{string(i.ImageID)}, []ami.Tag{{Key: TagDefaultUser, Value: "debian"}}, false))
	key, _, err := r.CreateKeyPair(t.Context(), "mine", "", false)
	must(t, err)
	inst := launched(t, r, RunInstancesInput{Image: "base", KeyName: "mine", Hostname: "web-1.example.org", UserData: []byte("#cloud-config\n# user data\n")})
	seed, err := os.ReadFile(r.seedPath(inst.InstanceID))
	must(t, err)
	for _, want := range []string{key.PublicKey, "web-1.example.org", string(inst.InstanceID), "# user data"} {
		if !strings.Contains(string(seed), want) {
			t.Errorf("the guest's seed does not say %q", want)
		}
	}
	got, err := r.SSH(t.Context(), inst.InstanceID)
	must(t, err)
	want := SSHTarget{
		InstanceID: inst.InstanceID, Host: "127.0.0.1", Port: inst.SSHPort, IdentityFile: r.privateKeyPath("mine"),
		KnownHosts: r.path("instances", string(inst.InstanceID), "known_hosts"), User: "debian",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("target (-want +got):\n%s", diff)
	}
	_, err = r.SSH(t.Context(), "i-00000000000000000")
	wantCode(t, err, ami.CodeInvalidInstanceIDNotFound)
	_, err = r.SSH(t.Context(), "i-x")
	wantCode(t, err, ami.CodeInvalidInstanceIDMalformed)
}

// OpenSSH itself reads the keys that are made, and agrees on their fingerprints.
func TestKeysAreOpenSSHs(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	key, _, err := r.CreateKeyPair(t.Context(), "mine", "ed25519", false)
	must(t, err)
	out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-l", "-f", r.privateKeyPath("mine")).CombinedOutput()
	if err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	want := regexp.MustCompile(`^256 SHA256:` + regexp.QuoteMeta(strings.TrimRight(key.KeyFingerprint, "=")) + ` mine \(ED25519\)`)
	if !want.Match(out) {
		t.Errorf("ssh-keygen says %q, want %s", out, want)
	}
}
