package libvirt

import (
	"errors"
	"os/exec"
	"strconv"
	"sync"
	"testing"

	"github.com/google/uuid"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/kamivm/kami/pkg/machine"
)

func openDriver(t *testing.T) *Driver {
	t.Helper()
	d, err := Open(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// known says whether libvirt has a secret.
func known(t *testing.T, d *Driver, id string) bool {
	t.Helper()
	s, err := d.conn.LookupSecretByUUIDString(id)
	var e libvirt.Error
	if errors.As(err, &e) && e.Code == libvirt.ERR_NO_SECRET {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	s.Free()
	return true
}

// TestSecrets gives keys and takes them back, also those of processes that are
// gone, by several at once, and never those of others.
func TestSecrets(t *testing.T) {
	d := openDriver(t)
	key := machine.Key{ID: uuid.NewString(), Passphrase: []byte("cGFzc3BocmFzZQ==")}
	broken := errors.New("broken")
	for _, want := range []error{nil, broken} {
		err := d.withKeys([]machine.Key{key}, func() error {
			if !known(t, d, key.ID) {
				t.Error("libvirt does not have the key")
			}
			return want
		})
		if !errors.Is(err, want) || known(t, d, key.ID) {
			t.Errorf("withKeys: %v, want %v; the key is left: %v", err, want, known(t, d, key.ID))
		}
	}
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	leave := func(of string) string {
		id := uuid.NewString()
		text, err := (&libvirtxml.Secret{Ephemeral: "yes", Private: "yes", UUID: id, Description: of}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		s, err := d.conn.SecretDefineXML(text, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { takeBack(*s) })
		return id
	}
	gone := strconv.Itoa(dead.Process.Pid) + " "
	left := []string{leave(secretOf + gone + pidNamespace()), leave(secretOf + gone + pidNamespace())}
	stay := map[string]string{
		"a living process's":    leave(secretOf + process()),
		"another namespace's":   leave(secretOf + gone + "pid:[1]"),
		"somebody else's":       leave("of another program"),
		"one that is not known": leave(secretOf + "x"),
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := openDriver(t).withKeys([]machine.Key{{ID: uuid.NewString(), Passphrase: []byte("x")}}, func() error { return nil }); err != nil {
				t.Errorf("withKeys beside others: %v", err)
			}
		})
	}
	wg.Wait()
	for _, id := range left {
		if known(t, d, id) {
			t.Error("the secret of a process that is gone is still there")
		}
	}
	for what, id := range stay {
		if !known(t, d, id) {
			t.Errorf("%s secret was taken back", what)
		}
	}
}
