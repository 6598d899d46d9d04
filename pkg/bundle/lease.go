package bundle

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/object"
)

// Who creates a bundle relies on chunks that are in the bucket before any manifest
// of its own names them, and who deletes one takes away those that no manifest
// names. So both say first what they are about to do, by an object of the bucket,
// and look then for what others say: whoever creates waits for one who deletes,
// and nothing is taken away while anybody creates. What a killed one has left
// counts for leaseTime.
const (
	leasesFolder  = ".making"
	sweepLease    = "sweep"
	leaseTime     = time.Hour
	leaseRenewal  = leaseTime / 6
	sweepPatience = 5 * time.Minute
	leaseLook     = time.Second
)

func leases(bucket string) string { return path.Join(bucket, leasesFolder) }

// lease is an object that says that somebody is at work.
type lease struct {
	store object.Store
	name  string
	stop  context.CancelFunc
	ended chan struct{}
}

// hold writes a lease and renews it until it is released.
func hold(ctx context.Context, store object.Store, name string, put func(context.Context) error) (*lease, error) {
	if err := put(ctx); err != nil {
		return nil, err
	}
	rctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	l := &lease{store: store, name: name, stop: stop, ended: make(chan struct{})}
	go func() {
		defer close(l.ended)
		tick := time.NewTicker(leaseRenewal)
		defer tick.Stop()
		for {
			select {
			case <-rctx.Done():
				return
			case <-tick.C: // one that fails is made up for by the next
				_ = object.WriteSmall(rctx, store, name, []byte("held\n"))
			}
		}
	}()
	return l, nil
}

// release takes the lease away, also when ctx has ended.
func (l *lease) release(ctx context.Context) {
	l.stop()
	<-l.ended
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	_ = l.store.Delete(ctx, l.name) // one that stays counts for leaseTime
}

// create holds off those who delete, and waits for one who does already, of which it
// tells.
func create(ctx context.Context, store object.Store, bucket string, tell ami.Progress) (_ *lease, err error) {
	name := path.Join(leases(bucket), "create-"+rand.Text())
	l, err := hold(ctx, store, name, func(ctx context.Context) error { return object.WriteSmall(ctx, store, name, []byte("held\n")) })
	if err != nil {
		return nil, err
	}
	var waiting ami.Step
	defer func() {
		if waiting != nil {
			waiting.Done(err)
		}
	}()
	for begun := time.Now(); ; {
		now, err := clock(ctx, store, name)
		if err != nil {
			l.release(ctx)
			return nil, err
		}
		info, err := store.Stat(ctx, path.Join(leases(bucket), sweepLease))
		switch {
		case errors.Is(err, object.ErrNotFound), err == nil && now.Sub(info.Modified) > leaseTime:
			return l, nil
		case err == nil && time.Since(begun) > sweepPatience:
			err = fmt.Errorf("%w: what no bundle needs is being deleted from %s since %s", ErrInUse, bucket, info.Modified.Format(time.TimeOnly))
		}
		if err == nil {
			if waiting == nil {
				waiting = tell.Step("waiting for another command that deletes from "+bucket, 0)
			}
			err = pause(ctx, leaseLook)
		}
		if err != nil {
			l.release(ctx)
			return nil, err
		}
	}
}

// clock is the store's time: that at which the lease was written.
func clock(ctx context.Context, store object.Store, name string) (time.Time, error) {
	info, err := store.Stat(ctx, name)
	if errors.Is(err, object.ErrNotFound) {
		return time.Now(), nil
	}
	return info.Modified, err
}

// sweeping holds off those who create. It returns ErrInUse while anybody does, or
// sweeps.
func sweeping(ctx context.Context, store object.Store, bucket string) (*lease, error) {
	name := path.Join(leases(bucket), sweepLease)
	l, err := hold(ctx, store, name, func(ctx context.Context) error {
		err := putNew(ctx, store, name)
		if !errors.Is(err, object.ErrExists) {
			return err
		}
		info, err := store.Stat(ctx, name)
		if err == nil && time.Since(info.Modified) <= leaseTime {
			return fmt.Errorf("%w: what no bundle needs is being deleted from it", ErrInUse)
		}
		if err == nil {
			err = store.Delete(ctx, name)
		}
		if err != nil && !errors.Is(err, object.ErrNotFound) {
			return err
		}
		return putNew(ctx, store, name)
	})
	if err != nil {
		return nil, err
	}
	now, err := clock(ctx, store, name)
	if err == nil {
		err = store.List(ctx, leases(bucket)+"/", func(o object.Info) error {
			if strings.HasPrefix(path.Base(o.Name), "create-") && now.Sub(o.Modified) <= leaseTime {
				return fmt.Errorf("%w: a bundle is being created in %s", ErrInUse, bucket)
			}
			return nil
		})
	}
	if err != nil {
		l.release(ctx)
		return nil, err
	}
	return l, nil
}

func putNew(ctx context.Context, store object.Store, name string) error {
	text := "held\n"
	return store.PutNew(ctx, name, strings.NewReader(text), int64(len(text)))
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
