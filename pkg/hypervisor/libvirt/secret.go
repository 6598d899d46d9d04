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
// more.
func (d *Driver) withKeys(keys []machine.Key, fn func() error) (err error) {
	if len(keys) == 0 {
		return fn()
	}
	if err := d.takeBackLeft(); err != nil {
		return err
	}
	defer func() {
		for _, key := range keys {
			err = errors.Join(err, d.takeBack(key.ID))
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
	def := libvirtxml.Secret{Ephemeral: "yes", Private: "yes", UUID: key.ID, Description: secretOf + strconv.Itoa(os.Getpid())}
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

func (d *Driver) takeBack(id string) error {
	s, err := d.conn.LookupSecretByUUIDString(id)
	var e libvirt.Error
	if errors.As(err, &e) && e.Code == libvirt.ERR_NO_SECRET {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(s.Undefine(), s.Free())
}

// takeBackLeft removes the secrets of processes that are gone.
func (d *Driver) takeBackLeft() error {
	all, err := d.conn.ListAllSecrets(libvirt.CONNECT_LIST_SECRETS_EPHEMERAL)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range all {
		if isLeft(s) {
			errs = append(errs, s.Undefine())
		}
		errs = append(errs, s.Free())
	}
	return errors.Join(errs...)
}

func isLeft(s libvirt.Secret) bool {
	text, err := s.GetXMLDesc(0)
	var def libvirtxml.Secret
	if err != nil || def.Unmarshal(text) != nil { // removed meanwhile
		return false
	}
	pid, err := strconv.Atoi(strings.TrimPrefix(def.Description, secretOf))
	return strings.HasPrefix(def.Description, secretOf) && err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
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
