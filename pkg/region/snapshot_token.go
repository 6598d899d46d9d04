package region

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
)

// tokenLife is how long a client token is remembered.
const tokenLife = 7 * 24 * time.Hour

// startToken is what is remembered of a client token: a file beside the drafts,
// named by the account and the token.
type startToken struct {
	SnapshotID ami.SnapshotID `json:"SnapshotId"`
	ImageID    ami.ImageID    `json:"ImageId,omitempty"` // of a copy, instead
	Request    digest.Digest  `json:"RequestDigest"`
}

// startOnce starts a snapshot unless one was started with the same client token,
// which it returns then. Of several with one token at once, one starts it.
func (r *Region) startOnce(ctx context.Context, in StartSnapshotInput) (ami.Snapshot, error) {
	if in.ClientToken == "" {
		return r.startSnapshot(ctx, in, func(ami.SnapshotID) error { return nil })
	}
	token := in.ClientToken
	in.ClientToken = ""
	text, err := json.Marshal(in)
	if err != nil {
		return ami.Snapshot{}, err
	}
	request, name := digest.Of(text), digest.Of([]byte(r.account+"\n"+token)).Hex()
	path, known, unlock, err := r.takeToken(ctx, name)
	if err != nil {
		return ami.Snapshot{}, err
	}
	defer unlock()
	if known.SnapshotID != "" {
		if err := r.undoLeft(ctx, known.SnapshotID); err != nil {
			return ami.Snapshot{}, err
		}
		snap, err := r.ownSnapshot(ctx, known.SnapshotID)
		switch {
		case ami.ErrorCode(err) == ami.CodeInvalidSnapshotNotFound: // deleted since, or never begun
		case err == nil && known.Request != request:
			return ami.Snapshot{}, tokenMismatch(token, string(known.SnapshotID))
		default:
			return snap, err
		}
	}
	return r.startSnapshot(ctx, in, func(id ami.SnapshotID) error { return writeToken(path, startToken{SnapshotID: id, Request: request}) })
}

// takeToken takes the sole right to a client token, and returns where what is
// remembered of it lies, and what that is.
func (r *Region) takeToken(ctx context.Context, name string) (path string, known startToken, unlock func(), err error) {
	at := r.lockPath("token-" + name)
	lock, err := durable.AcquireLock(ctx, at)
	if err != nil {
		return "", known, nil, err
	}
	unlock = func() {
		os.Remove(at)
		lock.Unlock()
	}
	path = r.path("drafts", name+".token")
	if known, err = readToken(path); err != nil {
		unlock()
	}
	return path, known, unlock, err
}

func tokenMismatch(token, id string) error {
	return ami.Errorf(ami.CodeIdempotentParameterMismatch, "The client token %q was given with another request, for %s.", token, id).
		WithHint("Give each request a token of its own; repeat one only as it was.")
}

// undoLeft undoes a snapshot whose start was killed when its token was written and
// it was not yet there for good: the next command would take it, and what had been
// put to it, away from whoever was given it. Only a killed start has a lease by now,
// since its token is locked.
func (r *Region) undoLeft(ctx context.Context, id ami.SnapshotID) error {
	if left, err := r.isLeft(ctx, string(id)); err != nil || !left {
		return err
	}
	lock, err := durable.AcquireLock(ctx, r.lockPath(string(id))) // a sweep may be at it
	if err != nil {
		return err
	}
	defer func() {
		os.Remove(r.lockPath(string(id)))
		lock.Unlock()
	}()
	if left, err := r.isLeft(ctx, string(id)); err != nil || !left {
		return err
	}
	return r.undo(ctx, string(id))
}

func writeToken(path string, t startToken) error {
	text, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return durable.WriteFile(path, 0o600, func(f *os.File) error {
		_, err := f.Write(text)
		return err
	})
}

// readToken reads what is remembered of a client token, if anything.
func readToken(path string) (known startToken, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return known, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &known)
	}
	return known, err
}

// sweepTokens forgets the client tokens that were given long ago.
func (r *Region) sweepTokens() error {
	paths, err := filepath.Glob(r.path("drafts", "*.token"))
	for _, path := range paths {
		info, serr := os.Stat(path)
		if serr == nil && time.Since(info.ModTime()) > tokenLife {
			err = errors.Join(err, durable.Remove(path))
		}
	}
	return err
}
