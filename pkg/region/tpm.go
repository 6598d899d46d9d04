package region

import (
	"context"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/launch"
	"github.com/kamivm/kami/pkg/machine"
)

// tpmPath is the folder for the state of an instance's TPM.
func (r *Region) tpmPath(id ami.InstanceID) string { return r.path("instances", string(id), "tpm") }

// letGo sees that nobody holds the disks of an instance that is to end, and has its
// hypervisor forget it.
func (r *Region) letGo(ctx context.Context, inst ami.Instance) error {
	if err := r.checkNotHeld(ctx, inst, "terminated"); err != nil {
		return err
	}
	r.forgetTPM(ctx, inst)
	return nil
}

// forgetTPM has the hypervisor remove the state of an instance's TPM, where it keeps
// that itself. No instance lives on for that.
func (r *Region) forgetTPM(ctx context.Context, inst ami.Instance) {
	if inst.TpmSupport == "" {
		return
	}
	driver, err := r.driver(ctx, inst.Connect)
	if f, ok := driver.(hypervisor.Forgetter); err == nil && ok {
		spec := launch.Identity(inst, machine.Accel(inst.Accel))
		spec.TPMState = r.tpmPath(inst.InstanceID)
		err = f.Forget(ctx, spec)
	}
	if err != nil {
		r.progress.Note("the state of the TPM of %s stays with %s: %v", inst.InstanceID, inst.Connect, err)
	}
}
