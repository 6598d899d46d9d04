package region

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/internal/durable"
)

// A group is a record of what is wanted. What there is of it is asked of the instances,
// which carry the group's name from the commit by which they come to be: so whoever is
// killed between two steps, the next who looks counts right.

// GroupInput asks for a group, or for a change of one; what is nil or zero stays, or
// has a default.
type GroupInput struct {
	Name              string
	Launch            *ami.GroupLaunch
	Min, Max, Desired *int // from 0 to 100; the least is 0, the most is as many as are desired
	HealthCheck       WaitFor
	Grace             time.Duration // that an instance has to become healthy
	DryRun            bool
}

// Groups returns the caller's groups with their instances, oldest first.
func (r *Region) Groups(ctx context.Context) ([]ami.Group, error) {
	all, err := r.groupRecords(ctx)
	if err != nil {
		return nil, err
	}
	return all, r.findMembers(ctx, all)
}

// Group returns one of the caller's groups with its instances.
func (r *Region) Group(ctx context.Context, name string) (ami.Group, error) {
	g, err := r.groupRecord(ctx, name)
	if err != nil {
		return g, err
	}
	one := []ami.Group{g}
	err = r.findMembers(ctx, one)
	return one[0], err
}

// groupRecords reads the caller's groups without their instances.
func (r *Region) groupRecords(ctx context.Context) (all []ami.Group, err error) {
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		all, err = tx.Groups(r.account)
		return r.legible(err)
	})
	return all, storeError(err, "The groups cannot be read.")
}

// groupRecord reads one of the caller's groups without its instances.
func (r *Region) groupRecord(ctx context.Context, name string) (g ami.Group, err error) {
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		if g, err = tx.Group(r.account, name); err != nil {
			return notFoundOr(err, notFoundGroup(name))
		}
		return nil
	})
	return g, storeError(err, "The group %s cannot be read.", name)
}

// findMembers gives groups their instances.
func (r *Region) findMembers(ctx context.Context, groups []ami.Group) error {
	instances, err := r.DescribeInstances(ctx, DescribeInput{})
	for i, g := range groups {
		_, revision, rerr := r.resolveGroup(ctx, g.Launch)
		if rerr != nil {
			r.progress.Note("what the group %s launches is not there: %v", g.GroupName, rerr)
		}
		groups[i].Instances = membersOf(g, instances, revision)
	}
	return err
}

func notFoundGroup(name string) error {
	return ami.Errorf(ami.CodeGroupNotFound, "The group %q does not exist.", name).WithHint("kami group list shows those there are.")
}

// tagOf is the value of a tag, "" without it.
func tagOf(tags []ami.Tag, key string) string {
	for _, t := range tags {
		if t.Key == key {
			return t.Value
		}
	}
	return ""
}

// membersOf returns what is there of a group, oldest first. An instance that is still
// pending is just being launched; to who holds the group's lock it is of a launch that was
// killed, and is undone. One that is terminated is past.
func membersOf(g ami.Group, all []ami.Instance, revision string) (out []ami.GroupInstance) {
	for _, i := range all {
		state := i.State.Name
		if tagOf(i.Tags, ami.TagGroup) != g.GroupName || i.OwnerID != g.OwnerID || state == ami.InstanceTerminated || state == ami.InstancePending {
			continue
		}
		of := tagOf(i.Tags, ami.TagGroupRevision)
		out = append(out, ami.GroupInstance{
			InstanceID: i.InstanceID, State: state, ImageID: i.ImageID, Revision: of, LaunchTime: i.LaunchTime,
			Current: of == revision, InService: tagOf(i.Tags, ami.TagGroupHealthy) != "",
		})
	}
	return out
}

// CreateGroup records a group. Its instances come with the first reconciliation.
func (r *Region) CreateGroup(ctx context.Context, in GroupInput) (ami.Group, error) {
	g := ami.Group{GroupName: in.Name, OwnerID: r.account, CreatedTime: r.now(), HealthCheck: string(WaitRunning), GraceSeconds: int64(DefaultWait / time.Second)}
	if in.Desired == nil {
		in.Desired = new(1)
		if in.Min != nil {
			in.Desired = new(max(*in.Min, 1))
		}
	}
	if in.Max == nil {
		in.Max = in.Desired
	}
	if err := errors.Join(ami.CheckGroupName(in.Name), in.apply(&g)); err != nil {
		return g, err
	}
	if _, _, err := r.resolveGroup(ctx, g.Launch); err != nil {
		return g, err
	}
	err := r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		if _, err := tx.Group(r.account, in.Name); !errors.Is(err, catalog.ErrNotFound) {
			return errors.Join(err, ami.Errorf(ami.CodeGroupExists, "A group of the name %q exists already.", in.Name).
				WithHint("kami group set %s changes it.", in.Name))
		}
		if in.DryRun {
			return dryRun("make the group %s", in.Name)
		}
		return tx.PutGroup(g)
	})
	return g, storeError(err, "The group cannot be recorded.")
}

// SetGroup changes what is wanted of a group. What it launches from now on is no
// reason to replace what runs; RollGroup does that.
func (r *Region) SetGroup(ctx context.Context, in GroupInput) (ami.Group, error) {
	if in.Launch != nil { // apart from the commit, in which no image is looked up
		if _, _, err := r.resolveGroup(ctx, *in.Launch); err != nil {
			return ami.Group{}, err
		}
	}
	return r.editGroup(ctx, in.Name, func(g *ami.Group) error {
		if g.Status == ami.GroupDeleting {
			return groupDeleting(in.Name)
		}
		err := in.apply(g)
		if err == nil && in.DryRun {
			err = dryRun("change the group %s", in.Name)
		}
		return err
	})
}

func groupDeleting(name string) error {
	return ami.Errorf(ami.CodeIncorrectState, "The group %s is being deleted.", name).WithHint("kami group reconcile %s goes on with that.", name)
}

// apply changes a group's record as is asked for, and checks it; that what it launches
// is there is not looked at.
func (in GroupInput) apply(g *ami.Group) error {
	var errs []error
	if in.Launch != nil {
		g.Launch = *in.Launch
	}
	for _, n := range []struct {
		from *int
		to   *int
	}{{in.Min, &g.MinSize}, {in.Max, &g.MaxSize}, {in.Desired, &g.DesiredCapacity}} {
		if n.from != nil {
			*n.to = *n.from
		}
	}
	if in.HealthCheck != "" {
		g.HealthCheck = string(in.HealthCheck)
	}
	if in.Grace != 0 {
		g.GraceSeconds = int64(max(in.Grace, time.Second) / time.Second)
	}
	if in.Grace < 0 {
		errs = append(errs, ami.Errorf(ami.CodeInvalidParameterValue, "The grace %s is less than nothing.", in.Grace))
	}
	if !slices.Contains([]WaitFor{WaitRunning, WaitBooted, WaitSSH}, WaitFor(g.HealthCheck)) {
		errs = append(errs, ami.Errorf(ami.CodeInvalidParameterValue, "The health check %q is not running, booted or ssh.", g.HealthCheck))
	}
	if g.MinSize < 0 || g.MinSize > g.DesiredCapacity || g.DesiredCapacity > g.MaxSize || g.MaxSize > maxCount {
		errs = append(errs, ami.Errorf(ami.CodeInvalidParameterValue, "The desired number %d is not from the least %d to the most %d, which is at most %d.", g.DesiredCapacity, g.MinSize, g.MaxSize, maxCount))
	}
	return errors.Join(errs...)
}

func (r *Region) editGroup(ctx context.Context, name string, edit func(*ami.Group) error) (g ami.Group, err error) {
	err = r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		if g, err = tx.Group(r.account, name); err != nil {
			return notFoundOr(err, notFoundGroup(name))
		}
		if err := edit(&g); err != nil {
			return err
		}
		return tx.PutGroup(g)
	})
	return g, storeError(err, "The group %s cannot be changed.", name)
}

// DeleteGroup deletes a group without instances, or with force terminates those first.
func (r *Region) DeleteGroup(ctx context.Context, name string, force, dry bool) ([]GroupAction, error) {
	t := &groupTask{r: r}
	err := t.locked(ctx, name, func(ctx context.Context) error {
		all, err := t.members(ctx, "")
		if err != nil {
			return err
		}
		if len(all) > 0 && !force {
			return ami.Errorf(ami.CodeGroupInUse, "The group %s has %d instances, and is not deleted with them.", name, len(all)).
				WithHint("kami group delete --force %s terminates them; or kami group set %s --min 0 --desired 0 and reconcile.", name, name)
		}
		if dry {
			return dryRun("delete the group %s with %d instances", name, len(all))
		}
		if t.g, err = r.editGroup(ctx, name, func(g *ami.Group) error { g.Status = ami.GroupDeleting; return nil }); err != nil {
			return err
		}
		durable.Step("group.deleting")
		return t.finishDelete(ctx)
	})
	return t.done, err
}

// lockGroup keeps other commands from changing what there is of a group.
func (r *Region) lockGroup(name string) (unlock func(), err error) {
	if err := ami.CheckGroupName(name); err != nil {
		return nil, err
	}
	path := r.lockPath("group-" + r.account + "-" + name)
	lock, free, err := durable.TryLock(path)
	if err != nil {
		return nil, storeError(err, "The group %s cannot be locked.", name)
	}
	if !free {
		return nil, ami.Errorf(ami.CodeGroupContention, "Another command is changing the instances of the group %s.", name).
			WithHint("Try again when it is done.")
	}
	return func() {
		os.Remove(path)
		lock.Unlock()
	}, nil
}
