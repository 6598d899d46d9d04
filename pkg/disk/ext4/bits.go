package ext4

import "math/bits"

// setBits sets those from start to end, of which some may not be there.
func setBits(b []byte, start, end int64) {
	start, end = max(start, 0), min(end, int64(len(b))*8)
	for start < end {
		if start%8 == 0 && end-start >= 8 {
			b[start/8] = 0xff
			start += 8
			continue
		}
		b[start/8] |= 1 << (start % 8)
		start++
	}
}

// countBits counts the first n.
func countBits(b []byte, n int64) (sum int64) {
	for i := range n / 8 {
		sum += int64(bits.OnesCount8(b[i]))
	}
	if n%8 != 0 {
		sum += int64(bits.OnesCount8(b[n/8] & (1<<(n%8) - 1)))
	}
	return sum
}
