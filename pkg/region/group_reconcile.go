package region

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/internal/durable"
)

// GroupAction is a step that a reconciliation did, or would do.
type GroupAction struct {
	GroupName  string         `json:"AutoScalingGroupName"`
	Action     string         `json:"Action"`
	InstanceID ami.InstanceID `json:"InstanceId,omitempty"` // none of one that would be launched
	Revision   string         `json:"Revision,omitempty"`   // what it is launched of
	Cause      string         `json:"Cause"`
	DryRun     bool           `json:"DryRun,omitempty"` // it was not done
}

// The actions.
const (
	GroupLaunches   = "launch"
	GroupTerminates = "terminate"
	GroupFinishes   = "finish" // a roll, or the deletion of a group
)

// groupPatience is how long an instance that was healthy may fail to answer.
const groupPatience = 15 * time.Second

// groupTask is one reconciliation of one group, under its lock.
type groupTask struct {
	r    *Region
	g    ami.Group
	dry  bool
	done []GroupAction
}

// ReconcileGroups brings groups to what is wanted of them, all of the caller's without
// names: what is unhealthy is terminated, what is missing is launched, what is too much
// is terminated, and a roll or deletion that was interrupted goes on. It returns what it
// did also beside an error; one group that fails does not keep the others.
func (r *Region) ReconcileGroups(ctx context.Context, names []string, dry bool) (done []GroupAction, err error) {
	if len(names) == 0 {
		all, err := r.groupRecords(ctx)
		if err != nil {
			return nil, err
		}
		for _, g := range all {
			names = append(names, g.GroupName)
		}
	}
	var errs []error
	for _, name := range names {
		t := &groupTask{r: r, dry: dry}
		errs = append(errs, t.locked(ctx, name, t.reconcile))
		done = append(done, t.done...)
	}
	return done, errors.Join(errs...)
}

// locked does something to a group under its lock.
func (t *groupTask) locked(ctx context.Context, name string, do func(context.Context) error) error {
	unlock, err := t.r.lockGroup(name)
	if err != nil {
		return err
	}
	defer unlock()
	t.g.GroupName = name
	if err := t.read(ctx); err != nil {
		return err
	}
	return do(ctx)
}

// read reads the group's record, which others may change under way.
func (t *groupTask) read(ctx context.Context) (err error) {
	t.g, err = t.r.groupRecord(ctx, t.g.GroupName)
	return err
}

// resolveGroup says how instances of a group are launched now, and of which revision
// they are: of another one as soon as anything of it is another.
func (r *Region) resolveGroup(ctx context.Context, l ami.GroupLaunch) (RunInstancesInput, string, error) {
	in, err := r.templated(ctx, RunInstancesInput{Template: l.Template}.with(l.Data))
	if err != nil {
		return in, "", err
	}
	if in.Image == "" {
		return in, "", ami.Errorf(ami.CodeMissingParameter, "A group launches an image or a launch template.").WithHint("Give --image or --template.")
	}
	image, err := r.ResolveImage(ctx, in.Image, false)
	if err != nil {
		return in, "", err
	}
	in.Image = string(image.ImageID)
	data, err := json.Marshal(in.data())
	if err != nil {
		return in, "", storeError(err, "What the group launches cannot be told.")
	}
	sum := sha256.Sum256(data)
	revision := string(image.ImageID) + "/" + hex.EncodeToString(sum[:6])
	if l.Template != "" {
		name, _ := ami.ParseTemplateRef(l.Template)
		revision = name + ":" + tagOf(in.systemTags, ami.TagTemplateVersion) + "/" + revision
	}
	in.Template = "" // which it has by now
	return in, revision, nil
}

func (t *groupTask) members(ctx context.Context, revision string) ([]ami.GroupInstance, error) {
	all, err := t.r.DescribeInstances(ctx, DescribeInput{})
	return membersOf(t.g, all, revision), err
}

func (t *groupTask) reconcile(ctx context.Context) error {
	switch {
	case t.g.Status == ami.GroupDeleting:
		return t.finishDelete(ctx)
	case t.g.Refresh != nil && t.g.Refresh.Status == ami.RefreshInProgress:
		t.r.progress.Note("the roll of %s was interrupted: it goes on", t.g.GroupName)
		return t.roll(ctx)
	}
	in, revision, err := t.r.resolveGroup(ctx, t.g.Launch)
	if err != nil {
		return err
	}
	all, err := t.members(ctx, revision)
	if err != nil {
		return err
	}
	var healthy []ami.GroupInstance
	for _, m := range all {
		why := t.unhealthy(ctx, m)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if why == nil {
			healthy = append(healthy, m)
		} else if err := t.terminate(ctx, m.InstanceID, "it is not healthy: "+firstLine(why)); err != nil {
			return err
		}
	}
	for _, m := range surplus(healthy, len(healthy)-t.g.DesiredCapacity) {
		if err := t.terminate(ctx, m.InstanceID, fmt.Sprintf("%d are more than the %d that are desired", len(healthy), t.g.DesiredCapacity)); err != nil {
			return err
		}
	}
	return t.launch(ctx, in, revision, t.g.DesiredCapacity-len(healthy), fmt.Sprintf("%d are less than the %d that are desired", len(healthy), t.g.DesiredCapacity))
}

// surplus returns n that go first: those of another revision, then the oldest.
func surplus(all []ami.GroupInstance, n int) []ami.GroupInstance {
	all = slices.Clone(all)
	rank := func(m ami.GroupInstance) int {
		if m.Current {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(all, func(a, b ami.GroupInstance) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), a.LaunchTime.Compare(b.LaunchTime))
	})
	return all[:min(max(n, 0), len(all))]
}

// launch launches n instances, and waits until they are healthy. Of those that are not
// nothing stays, and it fails.
func (t *groupTask) launch(ctx context.Context, in RunInstancesInput, revision string, n int, cause string) error {
	in.systemTags = slices.Concat(in.systemTags, []ami.Tag{{Key: ami.TagGroup, Value: t.g.GroupName}, {Key: ami.TagGroupRevision, Value: revision}})
	var made []ami.GroupInstance
	for i := range n {
		if t.dry {
			t.note(GroupAction{Action: GroupLaunches, Revision: revision, Cause: cause})
			continue
		}
		step := t.r.progress.Step(fmt.Sprintf("launching %d of %d for %s", i+1, n, t.g.GroupName), 0)
		res, err := t.r.RunInstances(ctx, in)
		step.Done(err)
		if err != nil {
			return errors.Join(err, t.settle(ctx, made))
		}
		inst := res.Instances[0]
		t.note(GroupAction{Action: GroupLaunches, InstanceID: inst.InstanceID, Revision: revision, Cause: cause})
		made = append(made, ami.GroupInstance{InstanceID: inst.InstanceID, State: inst.State.Name, LaunchTime: inst.LaunchTime})
		durable.Step("group.launched")
	}
	return t.settle(ctx, made)
}

// settle waits until instances that were just launched are healthy, and terminates
// those that do not become so.
func (t *groupTask) settle(ctx context.Context, made []ami.GroupInstance) error {
	var errs []error
	for _, m := range made {
		why := t.unhealthy(ctx, m)
		if ctx.Err() != nil {
			return ctx.Err() // the next one goes on waiting
		}
		if why != nil {
			errs = append(errs, why, t.terminate(ctx, m.InstanceID, "it did not become healthy: "+firstLine(why)))
		}
	}
	return errors.Join(errs...)
}

// unhealthy says why an instance is not healthy. One that was not yet found so is
// waited for as long as it may take; one that was has to run, and to answer on ssh if
// that is the check.
func (t *groupTask) unhealthy(ctx context.Context, m ami.GroupInstance) error {
	if m.State != ami.InstanceRunning {
		return fmt.Errorf("it is %s", m.State)
	}
	check, limit := WaitFor(t.g.HealthCheck), groupPatience
	if !m.InService {
		grace := time.Duration(t.g.GraceSeconds) * time.Second
		limit = min(max(grace-t.r.now().Sub(m.LaunchTime), groupPatience), grace)
	} else if check != WaitSSH {
		return nil
	}
	if t.dry {
		if !m.InService {
			return nil
		}
		limit = time.Second
	}
	if _, err := t.r.WaitInstance(ctx, m.InstanceID, check, limit); err != nil {
		return err
	}
	if m.InService || t.dry {
		return nil
	}
	durable.Step("group.healthy")
	return t.r.updateInstance(ctx, m.InstanceID, func(i *ami.Instance) {
		i.Tags = append(i.Tags, ami.Tag{Key: ami.TagGroupHealthy, Value: t.r.now().Format(time.RFC3339)})
	})
}

func (t *groupTask) terminate(ctx context.Context, id ami.InstanceID, cause string) error {
	if !t.dry {
		durable.Step("group.terminate")
		step := t.r.progress.Step(fmt.Sprintf("terminating %s of %s", id, t.g.GroupName), 0)
		_, err := t.r.TerminateInstances(ctx, []ami.InstanceID{id}, false)
		step.Done(err)
		if err != nil {
			return err
		}
		durable.Step("group.terminated")
	}
	t.note(GroupAction{Action: GroupTerminates, InstanceID: id, Cause: cause})
	return nil
}

func (t *groupTask) note(a GroupAction) {
	a.GroupName, a.DryRun = t.g.GroupName, t.dry
	t.done = append(t.done, a)
}

// finishDelete terminates what there is of a group and forgets it.
func (t *groupTask) finishDelete(ctx context.Context) error {
	all, err := t.members(ctx, "")
	if err != nil {
		return err
	}
	for _, m := range all {
		if err := t.terminate(ctx, m.InstanceID, "its group is being deleted"); err != nil {
			return err
		}
	}
	t.note(GroupAction{Action: GroupFinishes, Cause: "the group is deleted"})
	if t.dry {
		return nil
	}
	err = t.r.catalog.Update(ctx, func(tx *catalog.Tx) error { return tx.DeleteGroup(t.g.OwnerID, t.g.GroupName) })
	return storeError(err, "The group %s cannot be deleted.", t.g.GroupName)
}
