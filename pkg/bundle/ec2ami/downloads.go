package ec2ami

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"

	"github.com/kamivm/kami/pkg/object"
)

// downloads is the gzipped stream of a bundle: its parts, fetched several at once,
// verified, put in order, and decrypted.
type downloads struct {
	ctx    context.Context //nolint:containedctx // of one reading
	cancel context.CancelFunc
	bundle *Bundle
	mode   cipher.BlockMode

	queue chan chan fetched // in order
	free  chan []byte
	part  []byte // the buffer that is read from
	rest  []byte // what of it was not read yet
	taken int    // parts
	size  int64  // of them
	err   error
}

type fetched struct {
	part []byte
	err  error
}

func (b *Bundle) download(ctx context.Context) (*downloads, error) {
	block, err := aes.NewCipher(b.key[:])
	if err != nil {
		return nil, err
	}
	d := &downloads{
		bundle: b, mode: cipher.NewCBCDecrypter(block, b.iv[:]),
		queue: make(chan chan fetched, ahead), free: make(chan []byte, ahead+1),
	}
	d.ctx, d.cancel = context.WithCancel(ctx)
	for range ahead + 1 {
		d.free <- nil // made when it is needed
	}
	go d.fetchAll()
	return d, nil
}

// Close ends the fetching.
func (d *downloads) Close() { d.cancel() }

// fetchAll starts a part whenever a buffer is free.
func (d *downloads) fetchAll() {
	defer close(d.queue)
	for i := range d.bundle.Parts {
		var buf []byte
		select {
		case buf = <-d.free:
		case <-d.ctx.Done():
			return
		}
		got := make(chan fetched, 1)
		select {
		case d.queue <- got:
		case <-d.ctx.Done():
			return
		}
		go func() {
			part, err := d.bundle.fetch(d.ctx, i, buf)
			got <- fetched{part, err}
		}()
	}
}

// fetch reads a part into buf, or a new one, and verifies it.
func (b *Bundle) fetch(ctx context.Context, i int, buf []byte) ([]byte, error) {
	part := b.Parts[i]
	r, info, err := b.store.Get(ctx, b.part(i))
	if errors.Is(err, object.ErrNotFound) {
		return nil, fault("The bundle's part %s is missing.", quoted(part.Name))
	}
	if err != nil {
		return nil, fmt.Errorf("fetching the part %s: %w", quoted(part.Name), err)
	}
	defer r.Close()
	if info.Size < 1 || info.Size > PartSize {
		return nil, fault("The bundle's part %s is of %d bytes; parts have 1 to %d.", quoted(part.Name), info.Size, PartSize)
	}
	if int64(cap(buf)) < info.Size {
		buf = make([]byte, info.Size)
	}
	buf = buf[:info.Size]
	if _, err := io.ReadFull(r, buf); err != nil {
		return nil, fmt.Errorf("fetching the part %s: %w", quoted(part.Name), err)
	}
	if sha1.Sum(buf) != part.Digest {
		return nil, fault("The bundle's part %s is damaged: its SHA-1 is not the manifest's.", quoted(part.Name))
	}
	return buf, nil
}

// Read implements io.Reader.
func (d *downloads) Read(b []byte) (int, error) {
	for len(d.rest) == 0 && d.err == nil {
		d.err = d.next()
	}
	if len(d.rest) == 0 {
		return 0, d.err
	}
	n := copy(b, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

// next takes up the next part. The last is the end only where all parts together
// are as many bytes as the manifest says, padded as they should be.
func (d *downloads) next() error {
	if d.part != nil {
		d.free <- d.part
		d.part = nil
	}
	got, ok := <-d.queue
	if !ok {
		if err := d.ctx.Err(); err != nil {
			return err
		}
		return io.EOF
	}
	var f fetched
	select {
	case f = <-got:
	case <-d.ctx.Done():
		return d.ctx.Err()
	}
	if f.err != nil {
		return f.err
	}
	d.part, d.taken, d.size = f.part, d.taken+1, d.size+int64(len(f.part))
	last := d.taken == len(d.bundle.Parts)
	if d.size > d.bundle.BundledSize || last && d.size < d.bundle.BundledSize || len(d.part)%aes.BlockSize != 0 {
		return fault("The bundle's parts are not the %d bytes that its manifest says they are.", d.bundle.BundledSize)
	}
	d.mode.CryptBlocks(d.part, d.part)
	d.rest = d.part
	if last {
		return d.unpad()
	}
	return nil
}

// unpad takes PKCS#7's padding off the end.
func (d *downloads) unpad() error {
	n := int(d.rest[len(d.rest)-1])
	if n < 1 || n > aes.BlockSize || !bytes.Equal(d.rest[len(d.rest)-n:], bytes.Repeat([]byte{byte(n)}, n)) {
		return fault("The bundle does not end as what is encrypted ends.")
	}
	d.rest = d.rest[:len(d.rest)-n]
	return nil
}
