package rpcserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// listen binds the socket in the place of one that a killed predecessor left.
func listen(ctx context.Context, path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	listener, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("got a listener of type %T", l), l.Close())
	}
	// A successor may have bound the path before this process ends: its socket must stay.
	listener.SetUnlinkOnClose(false)
	// Between bind and chmod the peer's uid is the guard.
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// limitConnections lets at most n connections be open; further ones stay in the kernel's backlog.
func limitConnections(l *net.UnixListener, n int) net.Listener {
	return &limitedListener{UnixListener: l, slots: make(chan struct{}, n), closed: make(chan struct{})}
}

type limitedListener struct {
	*net.UnixListener
	slots  chan struct{}
	once   sync.Once
	closed chan struct{}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{UnixConn: conn, free: sync.OnceFunc(func() { <-l.slots })}, nil
}

func (l *limitedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.UnixListener.Close()
}

type limitedConn struct {
	*net.UnixConn
	free func()
}

func (c *limitedConn) Close() error {
	defer c.free()
	return c.UnixConn.Close()
}

// peerCredentials accepts connections of one user. There is no encryption: the bytes do not leave the kernel.
type peerCredentials struct {
	uid uint32
	log *slog.Logger
}

type peerAuth struct{ credentials.CommonAuthInfo }

func (peerAuth) AuthType() string { return "peercred" }

// ServerHandshake asks the kernel who connected. A uid is reported as the own user namespace sees it, so root of a
// namespace is root to a server in it, and other namespaces' users are the overflow uid.
func (c peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	uid, err := peerUID(conn)
	if err == nil && uid != c.uid {
		err = fmt.Errorf("uid %d may not connect", uid)
	}
	if err != nil {
		c.log.Warn("connection refused", "error", err)
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, peerAuth{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
}

func peerUID(conn net.Conn) (uint32, error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return 0, fmt.Errorf("connection of type %T has no socket", conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, err
	}
	var (
		cred    *unix.Ucred
		credErr error
	)
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, fmt.Errorf("peer credentials: %w", credErr)
	}
	return cred.Uid, nil
}

func (c peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("peer credentials are for servers")
}

func (c peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

func (c peerCredentials) Clone() credentials.TransportCredentials { return c }

func (c peerCredentials) OverrideServerName(string) error { return nil }
