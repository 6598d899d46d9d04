package snapshot

import (
	"bytes"
	"os"
	"os/user"
	"regexp"
	"slices"
	"strconv"
)

// qemuConf is where the system's libvirt is told whom guests run as.
const qemuConf = "/etc/libvirt/qemu.conf"

// confUser is a line of it.
var confUser = regexp.MustCompile(`^\s*user\s*=\s*"\+?([^"]+)"`)

// protect lets nobody read a layer, which holds what is secret in a guest, but
// its owner and the guests that stand on it. Those of an ordinary user run as
// that user; root's run as a user of their own, by whose group they may read.
func protect(f *os.File) error {
	if os.Getuid() != 0 {
		return f.Chmod(0o400)
	}
	gid, found := qemuGroup()
	if !found { // nobody knows who it is that has to read
		return f.Chmod(0o444)
	}
	if err := f.Chown(-1, gid); err != nil {
		return err
	}
	return f.Chmod(0o440)
}

// qemuGroup is the group by which the system's guests may read what is theirs.
func qemuGroup() (gid int, found bool) {
	names := []string{"libvirt-qemu", "qemu"} // built in, by distribution
	if conf, err := os.ReadFile(qemuConf); err == nil {
		for line := range bytes.Lines(conf) {
			if m := confUser.FindSubmatch(line); m != nil {
				names = []string{string(m[1])}
				break
			}
		}
	}
	for _, name := range names {
		u, err := user.Lookup(name)
		if err != nil {
			if u, err = user.LookupId(name); err != nil {
				continue
			}
		}
		if gid, err := strconv.Atoi(groupOf(u)); err == nil {
			return gid, true
		}
	}
	return 0, false
}

// groupOf is the group of u's own name, where u is in it: others may be in its
// first one (Debian's is kvm, as is that of people who run guests).
func groupOf(u *user.User) string {
	if g, err := user.LookupGroup(u.Username); err == nil {
		if in, err := u.GroupIds(); err == nil && slices.Contains(in, g.Gid) {
			return g.Gid
		}
	}
	return u.Gid
}
