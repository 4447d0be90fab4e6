package podnet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"vpccni/pkg/networkutils/names"

	"golang.org/x/sys/unix"
)

// Owner is the sandbox that a branch ENI's VLAN link serves. The link says it itself, in its alias (ip link shows it): a
// pod that comes back under its old name can have the same VLAN, so that a late DEL of the older sandbox could not know
// otherwise whose link it finds.
type Owner struct {
	ContainerID, IfName string
	HostVeth            string
	Address             netip.Addr
	Since               time.Time // whole seconds
}

const (
	ownerMark = "vpc-cni"
	// maxID keeps the alias below the kernel's 255 bytes. Container ids of the runtimes in use have 64.
	maxID = 128
)

func (o Owner) String() string {
	return fmt.Sprintf("%s %s %s %s %s %d", ownerMark, ownerID(o.ContainerID), o.IfName, o.HostVeth, o.Address, o.Since.Unix())
}

// Is tells whether it is a sandbox's.
func (o Owner) Is(containerID, ifName string) bool {
	return o.Sandbox() == SandboxOf(containerID, ifName)
}

// Sandbox identifies a sandbox to compare with.
type Sandbox struct{ id, ifName string }

// SandboxOf is the sandbox of a container id and an interface's name.
func SandboxOf(containerID, ifName string) Sandbox { return Sandbox{ownerID(containerID), ifName} }

// Sandbox is the one that the link serves.
func (o Owner) Sandbox() Sandbox { return Sandbox{o.ContainerID, o.IfName} }

// ownerID is the container's id, or a digest of it where it does not fit.
func ownerID(containerID string) string {
	if len(containerID) <= maxID && containerID != "" && !strings.ContainsAny(containerID, " \t\n\x00") {
		return containerID
	}
	sum := sha256.Sum256([]byte(containerID))
	return hex.EncodeToString(sum[:])
}

// parseOwner reads an alias; a link that another version made has none.
func parseOwner(alias string) (o Owner, ok bool) {
	fields := strings.Split(alias, " ")
	if len(fields) != 6 || fields[0] != ownerMark || fields[1] == "" {
		return Owner{}, false
	}
	addr, err := netip.ParseAddr(fields[4])
	if err != nil {
		return Owner{}, false
	}
	since, err := strconv.ParseInt(fields[5], 10, 64)
	if err != nil {
		return Owner{}, false
	}
	return Owner{ContainerID: fields[1], IfName: fields[2], HostVeth: fields[3], Address: addr, Since: time.Unix(since, 0)}, true
}

// BranchOwner says whom the VLAN link of a branch ENI serves; false if there is no link, or if it does not say.
func BranchOwner(ctx context.Context, vlan int) (Owner, bool, error) {
	host, err := dialer{}.open()
	if err != nil {
		return Owner{}, false, err
	}
	defer host.close()
	answer, err := host.ask(ctx, getLink(names.VLANLink(vlan)))
	if errors.Is(err, unix.ENODEV) {
		return Owner{}, false, nil
	}
	if err != nil {
		return Owner{}, false, err
	}
	owner, ok := parseOwner(parseEther(answer).alias)
	return owner, ok, nil
}

// setAlias has a link say something about itself. The kernel takes no alias for a link that is yet to be made.
func setAlias(name, alias string) message {
	m := newMessage("set the alias of "+name, unix.RTM_NEWLINK, 0)
	m.ifinfo(0, 0, 0)
	m.str(unix.IFLA_IFNAME, name)
	m.bytes(unix.IFLA_IFALIAS, []byte(alias))
	return m
}

// ether is what a link says of itself, whatever its kind.
type ether struct {
	index int32
	flags uint32
	mac   mac
	alias string
}

func parseEther(payload []byte) ether {
	if len(payload) < unix.SizeofIfInfomsg {
		return ether{}
	}
	l := ether{index: int32(order.Uint32(payload[4:])), flags: order.Uint32(payload[8:])}
	for typ, value := range attributes(payload[unix.SizeofIfInfomsg:]) {
		switch typ {
		case unix.IFLA_ADDRESS:
			copy(l.mac[:], value)
		case unix.IFLA_IFALIAS:
			l.alias = strings.TrimRight(string(value), "\x00")
		}
	}
	return l
}
