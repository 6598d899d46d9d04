package region

import (
	"context"
	"errors"
	"io"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/machine"
)

// ConsoleLog returns the path of the file that keeps all that the guest has
// written to its serial console. It may not exist yet.
func (r *Region) ConsoleLog(ctx context.Context, id ami.InstanceID) (string, error) {
	inst, err := r.instance(ctx, id)
	if err != nil {
		return "", err
	}
	if inst.State.Name == ami.InstanceTerminated {
		return "", ami.Errorf(ami.CodeIncorrectInstanceState, "The instance '%s' is terminated; its console went with it.", id)
	}
	return r.consolePath(id), nil
}

// Console connects to the serial console of a running guest, both ways.
func (r *Region) Console(ctx context.Context, id ami.InstanceID) (io.ReadWriteCloser, error) {
	inst, err := r.instance(ctx, id)
	if err != nil {
		return nil, err
	}
	if inst.State.Name != ami.InstanceRunning {
		return nil, incorrectState(inst, "attached to", "running")
	}
	driver, err := r.driver(ctx, inst.Connect)
	if err != nil {
		return nil, err
	}
	c, ok := driver.(hypervisor.Consoler)
	if !ok {
		return nil, ami.Errorf(ami.CodeUnsupportedOperation, "The driver %s offers no console to attach to.", driver.Name()).
			WithHint("kami console --follow %s shows what the guest writes.", id)
	}
	conn, err := c.Console(ctx, id)
	return conn, storeError(err, "The console of %s cannot be attached to.", id)
}

// SSH says how to log in to an instance.
func (r *Region) SSH(ctx context.Context, id ami.InstanceID) (SSHTarget, error) {
	if _, err := ami.ParseInstanceID(string(id)); err != nil {
		return SSHTarget{}, err
	}
	var inst ami.Instance
	var image ami.Image
	err := r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		if inst, err = tx.Instance(id); err != nil {
			return err
		}
		if image, err = tx.Image(inst.ImageID); errors.Is(err, catalog.ErrNotFound) {
			return nil
		}
		return err
	})
	if errors.Is(err, catalog.ErrNotFound) || err == nil && inst.OwnerID != r.account {
		return SSHTarget{}, notFoundInstance(id)
	}
	if err != nil {
		return SSHTarget{}, storeError(err, "The instance %s cannot be read.", id)
	}
	if inst.State.Name != ami.InstanceRunning && inst.State.Name != ami.InstancePending {
		return SSHTarget{}, incorrectState(inst, "logged in to", "running")
	}
	t := SSHTarget{
		InstanceID: id, Host: "127.0.0.1", Port: inst.SSHPort, User: defaultUser(inst.Tags, image.Tags),
		KnownHosts: r.path("instances", string(id), "known_hosts"),
	}
	if inst.KeyName != "" {
		t.IdentityFile = r.privateKeyPath(inst.KeyName)
	}
	if t.Port == 0 {
		driver, err := r.driver(ctx, inst.Connect)
		if err != nil {
			return t, err
		}
		t.Port = 22
		if t.Host, err = driver.Address(ctx, machine.Network{MAC: inst.MAC}, id); err != nil || t.Host == "" {
			return t, ami.Errorf(ami.CodeIncorrectInstanceState, "The instance '%s' has no address yet.", id).
				WithHint("kami instance wait %s --for ssh waits until it answers.", id)
		}
	}
	return t, nil
}

// defaultUser is the user that the tags name, root where none does.
func defaultUser(tags ...[]ami.Tag) string {
	for _, ts := range tags {
		for _, t := range ts {
			if t.Key == TagDefaultUser {
				return t.Value
			}
		}
	}
	return "root"
}
