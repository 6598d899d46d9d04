package region

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// SignatureState is what becomes of an image without a signature by a trusted key.
type SignatureState string

// The states: it is taken; it is taken and told of; it is refused.
const (
	SignaturesOff     SignatureState = "off"
	SignaturesWarn    SignatureState = "warn"
	SignaturesRequire SignatureState = "require"
)

// SignatureStates lists them.
func SignatureStates() []string {
	return []string{string(SignaturesOff), string(SignaturesWarn), string(SignaturesRequire)}
}

// SignedAction is what a region does with an image when it looks at its signatures.
type SignedAction string

// The actions. An import is of a stored image, which may have signatures, or of a
// disk, which has none.
const (
	SignedLaunch SignedAction = "launch"
	SignedCopy   SignedAction = "copy"
	SignedImport SignedAction = "import"
)

// SignedActions lists them.
func SignedActions() []SignedAction {
	return []SignedAction{SignedLaunch, SignedCopy, SignedImport}
}

// SignaturePolicy says for what a region asks for signatures, for all accounts in it.
type SignaturePolicy struct {
	Launch SignatureState `json:"Launch"`
	Copy   SignatureState `json:"Copy"` // to the region
	Import SignatureState `json:"Import"`
}

const settingSignatures = "image-signatures"

// of is the state for an action, in place.
func (p *SignaturePolicy) of(a SignedAction) *SignatureState {
	switch a {
	case SignedLaunch:
		return &p.Launch
	case SignedCopy:
		return &p.Copy
	}
	return &p.Import
}

func signaturesNow(tx *catalog.Tx) (SignaturePolicy, error) {
	p := SignaturePolicy{SignaturesOff, SignaturesOff, SignaturesOff}
	return p, tx.Setting("", settingSignatures, &p)
}

// SignaturePolicy returns the region's policy.
func (r *Region) SignaturePolicy(ctx context.Context) (p SignaturePolicy, err error) {
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		p, err = signaturesNow(tx)
		return err
	})
	return p, storeError(err, "The policy cannot be read.")
}

// SetSignaturePolicy sets the state for some actions, none for all of them. As it is for
// all accounts, it is UnauthorizedOperation to one that does not keep the region.
func (r *Region) SetSignaturePolicy(ctx context.Context, state SignatureState, actions []SignedAction, dry bool) (p SignaturePolicy, err error) {
	if !slices.Contains(SignatureStates(), string(state)) {
		return p, ami.Errorf(ami.CodeInvalidParameterValue, "The state %q is not one of %s.", state, strings.Join(SignatureStates(), ", "))
	}
	if len(actions) == 0 {
		actions = SignedActions()
	}
	for _, a := range actions {
		if !slices.Contains(SignedActions(), a) {
			return p, ami.Errorf(ami.CodeInvalidParameterValue, "The action %q is not one of %s, %s and %s.", a, SignedLaunch, SignedCopy, SignedImport)
		}
	}
	if err := r.checkKeeper(); err != nil {
		return p, err
	}
	err = r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		if p, err = signaturesNow(tx); err != nil {
			return err
		}
		for _, a := range actions {
			*p.of(a) = state
		}
		if dry {
			return dryRun("set the policy of image signatures to %s", state)
		}
		return tx.PutSetting("", settingSignatures, p)
	})
	return p, storeError(err, "The policy cannot be written.")
}

// checkSigned refuses an image, or tells of one, whose signatures the policy does not
// take for an action. manifest is asked for where that matters.
func (r *Region) checkSigned(ctx context.Context, a SignedAction, image ami.Image, manifest func() ([]byte, error)) error {
	p, err := r.SignaturePolicy(ctx)
	state := *p.of(a)
	if err != nil || state == SignaturesOff {
		return err
	}
	var verdicts []SignatureVerdict
	if len(image.Signatures) > 0 {
		text, err := manifest()
		if errors.Is(err, context.Canceled) {
			return err
		}
		if err != nil { // something that it is made of is not there any more
			return r.unsigned(a, state, ami.Errorf(ami.CodeInvalidManifest, "It cannot be said what of the image %s is signed: %w.", image.ImageID, err))
		}
		if verdicts, err = r.judgeSignatures(image.Signatures, text); err != nil {
			return err
		}
	}
	return r.unsigned(a, state, signatureFault(image, verdicts))
}

// unsigned is what the policy makes of a fault that an image's signatures have.
func (r *Region) unsigned(a SignedAction, state SignatureState, fault *ami.Error) error {
	switch {
	case fault == nil:
		return nil
	case state == SignaturesRequire:
		return fault
	}
	r.progress.Note("%s The policy of image signatures at %s only warns of that", fault.Message, a)
	return nil
}

// checkSignedLaunch is checkSigned of a launch with a mapping, nil for the image's own.
// What takes the place of a disk that is signed is not.
func (r *Region) checkSignedLaunch(ctx context.Context, image ami.Image, mapping []ami.BlockDeviceMapping) error {
	err := r.checkSigned(ctx, SignedLaunch, image, func() ([]byte, error) { return r.ImageManifest(ctx, image) })
	if err != nil || mapping == nil {
		return err
	}
	for _, m := range image.BlockDeviceMappings {
		i := slices.IndexFunc(mapping, func(o ami.BlockDeviceMapping) bool { return sameDevice(o.DeviceName, m.DeviceName) })
		if m.Ebs == nil || m.Ebs.SnapshotID == "" || i < 0 || mapping[i].Ebs != nil && mapping[i].Ebs.SnapshotID == m.Ebs.SnapshotID {
			continue
		}
		p, err := r.SignaturePolicy(ctx)
		if err != nil || p.Launch == SignaturesOff {
			return err
		}
		return r.unsigned(SignedLaunch, p.Launch, ami.Errorf(ami.CodeOperationNotPermitted,
			"The launch puts something else in the place of %s of the image %s, which is signed.", m.DeviceName, image.ImageID).
			WithHint("Leave that device as the image has it, or make an image of the other disk and sign that."))
	}
	return nil
}

// checkSignedDisk refuses the import of a disk, which nobody can have signed as an
// image, where the policy asks for that.
func (r *Region) checkSignedDisk(ctx context.Context, source string) error {
	p, err := r.SignaturePolicy(ctx)
	if err != nil || p.Import == SignaturesOff {
		return err
	}
	return r.unsigned(SignedImport, p.Import, ami.Errorf(ami.CodeOperationNotPermitted, "%s is a disk, which no signature of an image is of.", source).
		WithHint("Import it in a region that does not require signatures, sign it there, and copy it here: kami region image-signatures."))
}

// checkSignedParcel is checkSigned of an image that comes from elsewhere.
func (r *Region) checkSignedParcel(ctx context.Context, from origin, p parcel) error {
	action := SignedCopy
	if _, restored := from.(*unpacker); restored {
		action = SignedImport
	}
	return r.checkSigned(ctx, action, p.Image, func() ([]byte, error) { return manifestText(p.Image, p.Snapshots, p.Kernels) })
}
