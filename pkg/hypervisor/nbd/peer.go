package nbd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrPeer is returned, wrapped, when somebody else serves the socket than its
// owner.
var ErrPeer = errors.New("not the socket's owner")

// checkPeer refuses a server of another user than the one that the socket
// belongs to: in a folder where several users may make files, somebody else may
// have been first at that name, but cannot give the file away.
func checkPeer(conn net.Conn, socket string) error {
	info, err := os.Lstat(socket)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	uc, ok2 := conn.(*net.UnixConn)
	if !ok || !ok2 || info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%w: %s is no socket", ErrPeer, socket)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil || err != nil {
		return errors.Join(cerr, err)
	}
	if peer.Uid != st.Uid {
		return fmt.Errorf("%w: it belongs to user %d and user %d serves it", ErrPeer, st.Uid, peer.Uid)
	}
	return nil
}
