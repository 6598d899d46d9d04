package pvgrub

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/disk/guestfs"
)

// search finds a device by what is on it, and sets a variable (root) to it:
// search --fs-uuid --set=root --hint=… UUID, or search.fs_uuid UUID root. When
// there is none, the variable stays as it is.
func (s *script) search(ctx context.Context, name string, args []string) (bool, error) {
	by := map[string]string{"search.fs_uuid": "uuid", "search.fs_label": "label", "search.label": "label", "search.file": "file"}[name]
	variable, set := "root", by != ""
	short := by != ""
	var values []string
	for i := 0; i < len(args); i++ {
		option, value, has := strings.Cut(args[i], "=")
		switch option {
		case "-u", "--fs-uuid":
			by = "uuid"
		case "-l", "--label", "--fs-label":
			by = "label"
		case "-f", "--file":
			by = "file"
		case "-s", "--set":
			set = true
			if has {
				variable = value
			} else if i+1 < len(args) && operand(args[i+1]) && (len(values) > 0 || slices.ContainsFunc(args[i+2:], operand)) {
				i++ // -s root UUID
				variable = args[i]
			}
		default:
			if operand(option) {
				values = append(values, args[i])
			}
		}
	}
	if len(values) == 0 {
		return false, nil
	}
	if short && len(values) > 1 {
		variable = values[1]
	}
	var found *volume
	switch by {
	case "uuid":
		found = s.d.byUUID(values[0])
	case "label":
		found = s.d.byLabel(values[0])
	default:
		for _, v := range s.d.volumes {
			there, err := exists(ctx, place{v, values[0]}, "-e")
			if err != nil {
				return false, err
			}
			if there {
				found = v
				break
			}
		}
	}
	if found == nil {
		return false, nil
	}
	if !set {
		return true, nil
	}
	return true, s.set(variable, bare(found))
}

func operand(s string) bool { return !strings.HasPrefix(s, "-") }

// exists does the tests of files: -e there, -f a file, -d a directory, -s not
// empty.
func exists(ctx context.Context, p place, test string) (bool, error) {
	f, err := p.on.fs.Open(ctx, p.path)
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	isDir := errors.Is(err, guestfs.ErrNotAFile)
	if err != nil && !isDir {
		return false, nil // what cannot be read is not there, GRUB says too
	}
	switch test {
	case "-f":
		return !isDir, nil
	case "-d":
		return isDir, nil
	case "-s":
		return !isDir && f.Size() > 0, nil
	}
	return true, nil
}
