package region

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/launch"
	"github.com/kamivm/kami/pkg/machine"
	"github.com/kamivm/kami/pkg/snapshot"
)

// DefaultStopTimeout is how long a guest may take to shut down cleanly.
const DefaultStopTimeout = 2 * time.Minute

func bitmapName(d digest.Digest) string { return snapshot.BitmapName(d) }

// spec puts an instance's records together as a machine.
func (r *Region) spec(ctx context.Context, inst ami.Instance, kernel machine.Kernel) (machine.Spec, error) {
	agent, err := r.agentSocket(inst)
	if err != nil {
		return machine.Spec{}, err
	}
	driver, err := r.driver(ctx, inst.Connect)
	if err != nil {
		return machine.Spec{}, err
	}
	plan := launch.Plan{
		Instance: inst, Accel: machine.Accel(inst.Accel), Metadata: r.metadataProgram(driver, inst),
		ConsoleLog: r.consolePath(inst.InstanceID), SSHPort: inst.SSHPort, Kernel: kernel,
		AgentSocket: agent,
	}
	if !inst.NoSeed {
		plan.Seed = r.seedPath(inst.InstanceID)
	}
	if inst.CurrentBootMode == ami.BootUEFI {
		plan.NVRAM = r.nvramPath(inst.InstanceID)
		if plan.SecureBoot, err = r.hasSecureBoot(inst); err != nil {
			return machine.Spec{}, err
		}
	}
	if inst.TpmSupport != "" {
		plan.TPMState = r.tpmPath(inst.InstanceID)
	}
	for _, bd := range inst.BlockDeviceMappings {
		d, err := r.planDisk(ctx, bd.DeviceName, bd.Ebs.VolumeID)
		if err != nil {
			return machine.Spec{}, err
		}
		plan.Disks = append(plan.Disks, d)
	}
	return launch.BuildSpec(plan)
}

func (r *Region) planDisk(ctx context.Context, device string, id ami.VolumeID) (launch.Disk, error) {
	v, err := r.volumeRecord(ctx, id)
	if err != nil {
		return launch.Disk{}, err
	}
	d := launch.Disk{Device: device, VolumeID: id, Path: r.layers.HeadPath(id)}
	if v.Layer != "" {
		if d.Backing, err = r.layers.Chain(v.Layer); err != nil {
			return d, storeError(err, "The layers under %s cannot be used.", id)
		}
	}
	d.Keys, err = r.diskKeys(append([]string{d.Path}, d.Backing...))
	return d, err
}

// start gives an instance to its hypervisor and returns its record with what
// was chosen for this run. It does not write the record.
func (r *Region) start(ctx context.Context, inst ami.Instance) (ami.Instance, error) {
	driver, err := r.driver(ctx, inst.Connect)
	if err != nil {
		return inst, err
	}
	if err := r.identity(ctx, driver, inst); err != nil {
		return inst, err
	}
	kernel, err := r.bootFiles(ctx, inst)
	if err != nil {
		return inst, err
	}
	// A port that was free a moment ago can be taken by the time that the
	// hypervisor binds it; then another one is tried.
	for try := 0; ; try++ {
		if inst.SSHPort = 0; inst.Network == "" {
			if inst.SSHPort, err = freePort(ctx); err != nil {
				return inst, storeError(err, "No port is free for ssh.")
			}
		}
		spec, err := r.spec(ctx, inst, kernel)
		if err != nil {
			return inst, err
		}
		// Before the guest runs with it: a port that only the guest knows of is lost.
		inst.HostBoot = hostBoot()
		if err := r.updateInstance(ctx, inst.InstanceID, func(i *ami.Instance) { i.SSHPort, i.HostBoot = inst.SSHPort, inst.HostBoot }); err != nil {
			return inst, err
		}
		if err := r.keepRendering(driver, spec); err != nil {
			return inst, err
		}
		if err := r.markBoot(inst.InstanceID); err != nil {
			return inst, storeError(err, "The boot of %s cannot be noted.", inst.InstanceID)
		}
		err = driver.Start(ctx, spec)
		if err == nil {
			return inst, nil
		}
		if try < 3 && strings.Contains(err.Error(), "host forwarding") {
			continue
		}
		if errors.Is(err, hypervisor.ErrExists) {
			return inst, ami.Errorf(ami.CodeIncorrectInstanceState, "The instance '%s' runs already.", inst.InstanceID)
		}
		e := storeError(err, "The guest of %s cannot be started.", inst.InstanceID)
		return inst, e
	}
}

// keepRendering keeps what the hypervisor is given, for people to read.
func (r *Region) keepRendering(driver hypervisor.Driver, spec machine.Spec) error {
	renderer, ok := driver.(hypervisor.Renderer)
	if !ok {
		return nil
	}
	text, err := renderer.Render(spec)
	if err != nil {
		return storeError(err, "The guest of %s cannot be described to the hypervisor.", spec.ID)
	}
	err = os.WriteFile(r.path("instances", string(spec.ID), renderingName(driver)), []byte(text), 0o600)
	return storeError(err, "The guest's description cannot be kept.")
}

func freePort(ctx context.Context) (int, error) {
	var conf net.ListenConfig
	l, err := conf.Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// turnOn has the guest of a stopped or running instance run. One that does is
// left alone, also by its lock.
func (r *Region) turnOn(ctx context.Context, inst ami.Instance) error {
	if inst.State.Name == ami.InstanceRunning {
		if paused, err := r.isPaused(ctx, inst); err != nil || !paused {
			return err
		}
	}
	return r.whileLocked(ctx, inst.InstanceID, func(now ami.Instance) error {
		if now.State.Name == ami.InstanceRunning { // it is paused, or another command was quicker
			return r.resume(ctx, now)
		}
		return r.power(ctx, now)
	})
}

// power starts a stopped instance and records that it runs. Its ephemeral disks
// are as they were at first.
func (r *Region) power(ctx context.Context, inst ami.Instance) error {
	if err := r.checkNotHeld(ctx, inst, "started"); err != nil {
		return err
	}
	for _, bd := range inst.BlockDeviceMappings {
		if bd.Virtual == "" || inst.IsInstanceStore() { // which goes on as after a reboot
			continue
		}
		v, err := r.volumeRecord(ctx, bd.Ebs.VolumeID)
		if err != nil {
			return err
		}
		if err := r.layers.ReplaceHead(v.VolumeID, v.SizeBytes, v.Layer, v.KmsKeyID); err != nil {
			return storeError(err, "The ephemeral disk %s cannot be made.", bd.DeviceName)
		}
	}
	inst, err := r.start(ctx, inst)
	if err != nil {
		return err
	}
	return r.updateInstance(ctx, inst.InstanceID, func(i *ami.Instance) {
		i.State, i.StateReason, i.SSHPort = ami.StateRecord(ami.InstanceRunning), nil, inst.SSHPort
	})
}

// startAgain starts an instance that a command has shut down for a reboot. One
// that cannot be started is stopped, and not by its own will: it keeps all it has.
func (r *Region) startAgain(ctx context.Context, inst ami.Instance) error {
	ctx = context.WithoutCancel(ctx)
	again, err := r.start(ctx, inst)
	if err != nil {
		return errors.Join(err, r.putStopped(ctx, inst.InstanceID, &ami.StateReason{
			Code: "Server.InternalError", Message: "Server.InternalError: It could not be started again: " + firstLine(err),
		}))
	}
	return r.updateInstance(ctx, inst.InstanceID, func(i *ami.Instance) { i.SSHPort = again.SSHPort })
}

func userShutdown() *ami.StateReason {
	return &ami.StateReason{Code: "Client.UserInitiatedShutdown", Message: "Client.UserInitiatedShutdown: User initiated shutdown"}
}

func (r *Region) putStopped(ctx context.Context, id ami.InstanceID, why *ami.StateReason) error {
	return r.updateInstance(ctx, id, func(i *ami.Instance) {
		i.State, i.StateReason = ami.StateRecord(ami.InstanceStopped), why
	})
}

// updateInstance changes an instance's record as it is now, so that what others
// wrote while a guest took its time (tags, say) stays.
func (r *Region) updateInstance(ctx context.Context, id ami.InstanceID, edit func(*ami.Instance)) error {
	err := r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		inst, err := tx.Instance(id)
		if err != nil {
			return err
		}
		edit(&inst)
		return tx.PutInstance(inst)
	})
	return storeError(err, "The instance %s cannot be recorded.", id)
}

// powerOff shuts a guest down and waits: cleanly within limit, then (or at once,
// with force) by pulling the plug. It says whether the shutdown was clean.
func (r *Region) powerOff(ctx context.Context, inst ami.Instance, limit time.Duration, force bool) (clean bool, err error) {
	driver, err := r.driver(ctx, inst.Connect)
	if err != nil {
		return false, err
	}
	if !force {
		step := r.progress.Step("shutting down "+string(inst.InstanceID), 0)
		clean, err = r.shutdown(ctx, driver, inst.InstanceID, limit)
		if err != nil || clean {
			step.Done(err)
		} else {
			step.Done(errShutdownLimit)
		}
		if err != nil {
			return false, err
		}
		if !clean {
			r.progress.Note("%s did not shut down within %s: its power was cut", inst.InstanceID, limit)
		}
	}
	// Also after a clean shutdown: forgets what the hypervisor still knows.
	if err := driver.Destroy(ctx, inst.InstanceID); err != nil {
		return clean, storeError(err, "The guest of %s cannot be stopped.", inst.InstanceID)
	}
	durable.Step("power.off")
	return clean, nil
}

// shutdown presses the power button until the guest is off. A guest that is
// still booting misses a press, so it is repeated.
func (r *Region) shutdown(ctx context.Context, driver hypervisor.Driver, id ami.InstanceID, limit time.Duration) (bool, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errShutdownLimit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var pressed time.Time
	for {
		state, err := driver.State(ctx, id)
		if err == nil && (state == hypervisor.StateOff || state == hypervisor.StateGone) {
			return true, nil
		}
		if err == nil && time.Since(pressed) > 5*time.Second {
			if state != hypervisor.StateRunning && state.On() { // it hears nothing
				err = letGoOn(ctx, driver, id)
			}
			if err == nil {
				err = driver.Shutdown(ctx, id)
			}
			if errors.Is(err, hypervisor.ErrNotRunning) {
				return true, nil
			}
			pressed = time.Now()
		}
		if err != nil && ctx.Err() == nil {
			return false, storeError(err, "The guest of %s cannot be shut down.", id)
		}
		select {
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), errShutdownLimit) {
				return false, nil
			}
			return false, ctx.Err()
		case <-tick.C:
		}
	}
}

var errShutdownLimit = fmt.Errorf("the guest did not shut down in time")
