package pvgrub

import (
	"fmt"
	"strings"
)

const envHead = "# GRUB Environment Block\n"

// parseEnv reads GRUB's environment block: name=value lines, a backslash before
// each backslash and line end in a value, padded with #.
func parseEnv(b []byte) (map[string]string, error) {
	text := string(b)
	if !strings.HasPrefix(text, envHead) {
		return nil, fmt.Errorf("no environment block: it does not begin with %q", strings.TrimSpace(envHead))
	}
	const most = 1000
	out := map[string]string{}
	for rest := text[len(envHead):]; rest != "" && len(out) < most; {
		var line strings.Builder
		i := 0
		for ; i < len(rest) && rest[i] != '\n'; i++ {
			if rest[i] == '\\' && i+1 < len(rest) {
				i++
			}
			line.WriteByte(rest[i])
		}
		rest = rest[min(i+1, len(rest)):]
		if name, value, ok := strings.Cut(line.String(), "="); ok && name != "" && name[0] != '#' {
			out[name] = value
		}
	}
	return out, nil
}
