package region

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/internal/durable"
)

// RollInput asks for the instances of a group to be replaced.
type RollInput struct {
	Name   string
	Launch *ami.GroupLaunch // what to; nil is what the group launches, or a roll under way does
	Batch  int              // instances at once; 0 is 1, or as a roll under way has it
	DryRun bool
}

// RollGroup replaces the instances of a group that are of another revision, a batch at
// a time: new ones are launched and become healthy before as many old ones are
// terminated. When one does not, or does not stay so, the roll stops and the group goes
// on with what is healthy; what it launches is then what it was. A roll that is killed goes on with the
// next reconciliation.
func (r *Region) RollGroup(ctx context.Context, in RollInput) ([]GroupAction, error) {
	t := &groupTask{r: r, dry: in.DryRun}
	err := t.locked(ctx, in.Name, func(ctx context.Context) error {
		if t.g.Status == ami.GroupDeleting {
			return groupDeleting(in.Name)
		}
		refresh := ami.GroupRefresh{Status: ami.RefreshInProgress, Target: t.g.Launch, Batch: 1, StartTime: r.now()}
		if under := t.g.Refresh; under != nil && under.Status == ami.RefreshInProgress {
			refresh.Target, refresh.Batch = under.Target, under.Batch
		}
		if in.Launch != nil {
			refresh.Target = *in.Launch
		}
		if in.Batch != 0 {
			refresh.Batch = in.Batch
		}
		if refresh.Batch < 1 || refresh.Batch > maxCount {
			return ami.Errorf(ami.CodeInvalidParameterValue, "The batch of %d is not from 1 to %d.", in.Batch, maxCount)
		}
		if _, _, err := r.resolveGroup(ctx, refresh.Target); err != nil { // before anything is said
			return err
		}
		t.g.Refresh = &refresh
		if !in.DryRun {
			if _, err := r.editGroup(ctx, in.Name, func(g *ami.Group) error { g.Refresh = &refresh; return nil }); err != nil {
				return err
			}
			durable.Step("group.rolling")
		}
		return t.roll(ctx)
	})
	return t.done, err
}

// roll goes on with a roll until it is over.
func (t *groupTask) roll(ctx context.Context) error {
	if t.dry {
		return t.planRoll(ctx)
	}
	for {
		if err := t.read(ctx); err != nil {
			return err
		}
		in, revision, err := t.r.resolveGroup(ctx, t.g.Refresh.Target)
		if err != nil {
			return t.failRoll(ctx, err)
		}
		all, err := t.members(ctx, revision)
		if err != nil {
			return err
		}
		var fresh, old []ami.GroupInstance
		for _, m := range all {
			if !m.Current && m.State == ami.InstanceRunning {
				old = append(old, m)
				continue
			}
			why := t.unhealthy(ctx, m)
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case why == nil:
				fresh = append(fresh, m)
			case m.Current && (!m.InService || t.launched(m.InstanceID)):
				// It did not become healthy, or it was so and fell over: then what is
				// launched in its place would too, without an end.
				err := t.failRoll(ctx, why)
				return errors.Join(err, t.terminate(context.WithoutCancel(ctx), m.InstanceID, "it is not healthy: "+firstLine(why)))
			default:
				if err := t.terminate(ctx, m.InstanceID, "it is not healthy: "+firstLine(why)); err != nil {
					return err
				}
			}
		}
		want, total := t.g.DesiredCapacity, len(fresh)+len(old)
		switch {
		case total > want:
			gone := surplus(append(old, fresh...), total-want)
			for _, m := range gone {
				cause := "a newer one has taken its place"
				if m.Current {
					cause = fmt.Sprintf("%d are more than the %d that are desired", total, want)
				}
				if err := t.terminate(ctx, m.InstanceID, cause); err != nil {
					return err
				}
			}
		case len(fresh) == want:
			return t.finishRoll(ctx)
		default:
			cause := fmt.Sprintf("%d of %d are rolled", len(fresh), want)
			if err := t.launch(ctx, in, revision, min(t.g.Refresh.Batch, want-len(fresh)), cause); err != nil {
				if ctx.Err() != nil { // it was interrupted, and goes on
					return err
				}
				return t.failRoll(ctx, err)
			}
		}
	}
}

// launched says whether an instance is of this command's making.
func (t *groupTask) launched(id ami.InstanceID) bool {
	return slices.ContainsFunc(t.done, func(a GroupAction) bool { return a.Action == GroupLaunches && a.InstanceID == id })
}

// planRoll says what a roll would do if all went well.
func (t *groupTask) planRoll(ctx context.Context) error {
	_, revision, err := t.r.resolveGroup(ctx, t.g.Refresh.Target)
	if err != nil {
		return err
	}
	all, err := t.members(ctx, revision)
	if err != nil {
		return err
	}
	var fresh int
	for _, m := range all {
		if m.Current && m.State == ami.InstanceRunning {
			fresh++
		}
	}
	for n := fresh; n < t.g.DesiredCapacity; n++ {
		t.note(GroupAction{Action: GroupLaunches, Revision: revision, Cause: fmt.Sprintf("%d of %d are rolled", n, t.g.DesiredCapacity)})
	}
	for _, m := range all {
		if !m.Current || m.State != ami.InstanceRunning {
			t.note(GroupAction{Action: GroupTerminates, InstanceID: m.InstanceID, Cause: "a newer one takes its place"})
		}
	}
	return nil
}

// failRoll stops a roll, and says so in the group's record and to who asked.
func (t *groupTask) failRoll(ctx context.Context, why error) error {
	ctx = context.WithoutCancel(ctx)
	g, err := t.r.editGroup(ctx, t.g.GroupName, func(g *ami.Group) error {
		g.Refresh.Status, g.Refresh.Reason, g.Refresh.EndTime = ami.RefreshFailed, firstLine(why), t.r.now()
		return nil
	})
	if err != nil {
		return errors.Join(why, err)
	}
	durable.Step("group.failed")
	return ami.Errorf(ami.CodeIncorrectState, "The roll of the group %s stopped: %w", g.GroupName, why).
		WithHint("What is healthy runs on, and the group launches what it did before. kami group show %s tells what there is; kami group roll %s rolls all instances back to what it launches.", g.GroupName, g.GroupName)
}

// finishRoll records that the group launches from now on what it was rolled to.
func (t *groupTask) finishRoll(ctx context.Context) error {
	_, err := t.r.editGroup(ctx, t.g.GroupName, func(g *ami.Group) error {
		g.Launch = g.Refresh.Target
		g.Refresh.Status, g.Refresh.EndTime = ami.RefreshSuccessful, t.r.now()
		return nil
	})
	if err != nil {
		return err
	}
	durable.Step("group.rolled")
	t.note(GroupAction{Action: GroupFinishes, Cause: "the roll is done"})
	return nil
}
