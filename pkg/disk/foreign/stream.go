package foreign

import "io"

// XZReader unpacks an xz file with bounded memory, which it looks for beforehand.
func XZReader(src io.ReadSeeker) (io.Reader, error) { return xzReader(src) }
