package libvirt

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/kamivm/kami/pkg/machine"
)

// secretOf begins the descriptions of the secrets that kami gives to libvirt; the
// process whose it is follows.
const secretOf = "kami process "

// withKeys calls fn while libvirt has the keys as secrets. They are in its memory
// alone, and taken back when fn has returned: a guest that runs needs them no
// more. One that cannot be taken back does not undo what fn has done; the next
// that gives keys takes it back.
func (d *Driver) withKeys(keys []machine.Key, fn func() error) error {
	if len(keys) == 0 {
		return fn()
	}
	d.takeBackLeft()
	defer func() {
		for _, key := range keys {
			if s, err := d.conn.LookupSecretByUUIDString(key.ID); err == nil {
				takeBack(*s)
			}
		}
	}()
	for _, key := range keys {
		if err := d.give(key); err != nil {
			return fmt.Errorf("giving libvirt a key: %w", err)
		}
	}
	return fn()
}

func (d *Driver) give(key machine.Key) error {
	def := libvirtxml.Secret{Ephemeral: "yes", Private: "yes", UUID: key.ID, Description: secretOf + process()}
	text, err := def.Marshal()
	if err != nil {
		return err
	}
	s, err := d.conn.SecretDefineXML(text, 0)
	if err != nil {
		return err
	}
	return errors.Join(s.SetValue(key.Passphrase, 0), s.Free())
}

// takeBack has libvirt forget a secret, unless another process has had it do so.
func takeBack(s libvirt.Secret) {
	_ = s.Undefine()
	_ = s.Free()
}

// takeBackLeft takes back the secrets of processes that are gone. Nobody asked for
// that, so nobody is told where it fails.
func (d *Driver) takeBackLeft() {
	all, err := d.conn.ListAllSecrets(libvirt.CONNECT_LIST_SECRETS_EPHEMERAL)
	if err != nil {
		return
	}
	for _, s := range all {
		if isLeft(s) {
			takeBack(s)
		} else {
			_ = s.Free()
		}
	}
}

func isLeft(s libvirt.Secret) bool {
	text, err := s.GetXMLDesc(0)
	var def libvirtxml.Secret
	if err != nil || def.Unmarshal(text) != nil { // taken back meanwhile
		return false
	}
	of, ok := strings.CutPrefix(def.Description, secretOf)
	return ok && isGone(of)
}

// process names this process: its number, and the namespace of that. libvirt may
// be shared by containers, in which a number is another process's.
func process() string { return strconv.Itoa(os.Getpid()) + " " + pidNamespace() }

func pidNamespace() string {
	name, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return "?"
	}
	return name
}

// isGone says whether a process of this namespace has ended. Of another's that
// cannot be told.
func isGone(process string) bool {
	number, namespace, _ := strings.Cut(process, " ")
	pid, err := strconv.Atoi(number)
	return err == nil && namespace == pidNamespace() && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

// keysOf are the keys of disks, each once.
func keysOf(disks ...machine.Disk) []machine.Key {
	var keys []machine.Key
	for _, disk := range disks {
		for _, key := range disk.Keys {
			if !slices.ContainsFunc(keys, func(k machine.Key) bool { return k.ID == key.ID }) {
				keys = append(keys, key)
			}
		}
	}
	return keys
}
