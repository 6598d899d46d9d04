package object

import (
	"errors"
	"fmt"
	"io"
)

// whole is a reader of an object of size bytes: where r ends early, the error is
// io.ErrUnexpectedEOF.
func whole(r io.Reader, size int64) io.Reader { return &wholeReader{r: r, size: size} }

type wholeReader struct {
	r          io.Reader
	done, size int64 // bytes
}

func (w *wholeReader) Read(p []byte) (int, error) {
	left := w.size - w.done
	if left == 0 {
		return 0, io.EOF
	}
	n, err := w.r.Read(p[:min(int64(len(p)), left)])
	w.done += int64(n)
	if errors.Is(err, io.EOF) && w.done < w.size {
		err = fmt.Errorf("the object ends after %d of %d bytes: %w", w.done, w.size, io.ErrUnexpectedEOF)
	}
	return n, err
}
