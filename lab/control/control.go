// Package control is how programs on the machine speak to a running lab: requests over an abstract unix socket, which
// is no file and goes with the process that listens. A request is a line of JSON, with file descriptors where the
// lab is to use the caller's terminal or pipes; the answer is lines of JSON, the last of which has the result.
package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxLine bounds a request's or an answer's line, in bytes.
const maxLine = 64 << 20

// maxFiles is how many descriptors a request may carry.
const maxFiles = 3

// Address is the name of a lab's socket. Labs of different users do not meet.
func Address(lab string) string { return fmt.Sprintf("@vpclab/%d/%s", os.Getuid(), lab) }

// CheckName says whether a lab can have this name.
func CheckName(lab string) error {
	if lab == "" || len(lab) > 40 || strings.Trim(lab, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return fmt.Errorf("%q is no name for a lab: lower-case letters, digits and dashes, at most 40", lab)
	}
	return nil
}

// ErrUp means that a lab of that name is running.
var ErrUp = errors.New("is up already")

// ErrNotUp means that no lab of that name is running.
var ErrNotUp = errors.New("is not up")

// Listen opens the socket of a lab that is about to start.
func Listen(lab string) (*net.UnixListener, error) {
	if err := CheckName(lab); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: Address(lab), Net: "unix"})
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("lab %q %w", lab, ErrUp)
	}
	return l, err
}

// request is the first line of a connection.
type request struct {
	Method string          `json:"method"`
	Params json.RawMessage `json:"params,omitempty"`
	// Files says how many descriptors come with the line.
	Files int `json:"files,omitempty"`
}

// note is a further line of a caller.
type note struct {
	Signal int `json:"signal,omitempty"`
}

// answer is a line of the lab's: progress, or in the last one the result or an error.
type answer struct {
	Progress json.RawMessage `json:"progress,omitempty"`
	Done     bool            `json:"done,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    string          `json:"error,omitempty"`
}

// checkPeer refuses sockets of other users: abstract sockets have no permissions.
func checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return fmt.Errorf("peer's credentials: %w", credErr)
	}
	if int(cred.Uid) != os.Getuid() {
		return fmt.Errorf("the other end belongs to user %d", cred.Uid)
	}
	return nil
}
