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
	lock, err := durable.AcquireLock(ctx, r.lockPath("token-"+name))
	if err != nil {
		return ami.Snapshot{}, err
	}
	defer func() {
		os.Remove(r.lockPath("token-" + name))
		lock.Unlock()
	}()
	path := r.path("drafts", name+".token")
	known, err := readToken(path)
	if err != nil {
		return ami.Snapshot{}, err
	}
	if known.SnapshotID != "" {
		snap, err := r.ownSnapshot(ctx, known.SnapshotID)
		switch {
		case ami.ErrorCode(err) == ami.CodeInvalidSnapshotNotFound: // deleted since, or never begun
		case err == nil && known.Request != request:
			return ami.Snapshot{}, ami.Errorf(ami.CodeIdempotentParameterMismatch, "The client token %q was given with another request, for %s.", token, known.SnapshotID).
				WithHint("Give each request a token of its own; repeat one only as it was.")
		default:
			return snap, err
		}
	}
	return r.startSnapshot(ctx, in, func(id ami.SnapshotID) error { return r.writeToken(path, startToken{id, request}) })
}

func (r *Region) writeToken(path string, t startToken) error {
	text, err := json.Marshal(t)
	if err != nil {
		return err
	}
	scratch, err := durable.NewScratch(r.path("tmp"), "token")
	if err != nil {
		return err
	}
	defer scratch.Close()
	work := scratch.Path("token")
	if err := os.WriteFile(work, text, 0o600); err != nil {
		return err
	}
	return durable.Rename(work, path)
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
