// Package probe sends traffic through a simulated VPC and says what arrived: which server answered, which source
// address it saw, and whether every byte came through. Servers and clients run in any network namespace that the
// caller can run a function in: a pod's, a node's, a host's of the fabric.
//
// A server answers the same on TCP and UDP of a port. Over UDP the answer to a datagram is the line
// "<server> <source> <bytes>", filled up to the size of the question with the question's own bytes, so that both ways
// carry datagrams of that size. Over TCP the server starts with the line "<server> <source>" and then does what one
// line of the client asks for:
//
//	echo          send back all that comes
//	discard       read all that comes
//	bulk <bytes>  read that many bytes and answer with the line "<bytes> <CRC-32C in hex>"
package probe

import (
	"fmt"
	"hash/crc32"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Do runs a function in a network namespace; sockets that it opens stay there.
type Do = func(func() error) error

// Here is the caller's own network namespace.
func Here(fn func() error) error { return fn() }

// Answer is what a client learnt from a server.
type Answer struct {
	Server string        // its name
	Source netip.Addr    // the client's address as the server saw it
	RTT    time.Duration // question to answer (UDP), or start of connecting to the server's first line (TCP)
	Bytes  int           // of the payload that came through unharmed
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// pattern fills b with bytes that differ at every offset a packet could be shifted by.
func pattern(b []byte, offset int) {
	for i := range b {
		n := offset + i
		b[i] = byte(n) ^ byte(n>>8) ^ byte(n>>16)
	}
}

// greeting is the line that names server and source; a negative size is left out.
func greeting(server string, source netip.Addr, size int) string {
	line := server + " " + source.Unmap().WithZone("").String()
	if size >= 0 {
		line += " " + strconv.Itoa(size)
	}
	return line + "\n"
}

// parseGreeting reads a line of greeting. The size is -1 if the line has none.
func parseGreeting(line string) (server string, source netip.Addr, size int, err error) {
	fields := strings.Fields(line)
	if len(fields) != 2 && len(fields) != 3 {
		return "", netip.Addr{}, 0, fmt.Errorf("no line of a probe server: %q", line)
	}
	if source, err = netip.ParseAddr(fields[1]); err != nil {
		return "", netip.Addr{}, 0, fmt.Errorf("no line of a probe server: %q: %w", line, err)
	}
	size = -1
	if len(fields) == 3 {
		if size, err = strconv.Atoi(fields[2]); err != nil {
			return "", netip.Addr{}, 0, fmt.Errorf("no line of a probe server: %q: %w", line, err)
		}
	}
	return fields[0], source, size, nil
}
