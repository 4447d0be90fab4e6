package hostnet

import (
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"vpccni/pkg/networkutils/names"
)

// Kind is a kind of host state, as repairs are counted by.
type Kind string

// The kinds. Links' settings are those of ENIs and of pods' host ends.
const (
	KindLink      Kind = "link"      // up, MTU, MAC, rp_filter
	KindAddress   Kind = "address"   // of ENIs
	KindRoute     Kind = "route"     // of ENIs' tables and of unassigned addresses
	KindRule      Kind = "rule"      // ip rules
	KindNFTables  Kind = "nftables"  // the nftables tables
	KindPodRoute  Kind = "pod_route" // routes to pods
	KindPodLink   Kind = "pod_link"  // host ends of pods' veths
	KindConntrack Kind = "conntrack" // connections that began while something was missing
)

// Kinds lists all of them.
func Kinds() []Kind {
	return []Kind{KindLink, KindAddress, KindRoute, KindRule, KindNFTables, KindPodRoute, KindPodLink, KindConntrack}
}

// look is what of the kernel's state an Apply has to read.
type look uint8

const (
	lookLinks look = 1 << iota
	lookAddresses
	lookRoutes
	lookRules
	lookFilter

	lookAll = lookLinks | lookAddresses | lookRoutes | lookRules | lookFilter
)

// with adds what a change of the looked-at may have taken along: a link that goes down or comes back loses its routes
// and, in IPv6, its addresses, and for IPv4 the kernel does not even say so.
func (l look) with() look {
	if l&lookLinks != 0 {
		l |= lookAddresses | lookRoutes
	}
	if l&lookAddresses != 0 {
		l |= lookRoutes
	}
	return l
}

// doubts are what may have changed since the last Apply, and who may have changed it.
type doubts struct {
	listening bool // Watch hears the kernel
	look      look
	by        map[string]bool
}

// maxSuspects bounds how many programs a repair names.
const maxSuspects = 4

// doubt notes that the state of a kind may have changed.
func (h *Host) doubt(l look, by string) {
	h.scopeMu.Lock()
	defer h.scopeMu.Unlock()
	h.doubts.look |= l
	if by == "" || len(h.doubts.by) >= maxSuspects {
		return
	}
	if h.doubts.by == nil {
		h.doubts.by = map[string]bool{}
	}
	h.doubts.by[by] = true
}

// listening says whether what changes is heard. What happened before is not known.
func (h *Host) listening(on bool) {
	h.scopeMu.Lock()
	defer h.scopeMu.Unlock()
	h.doubts = doubts{listening: on, look: lookAll}
}

// takeDoubts returns what may have changed since it was last called. Events that arrive from now on are for the next
// Apply, even if this one sees what they are about.
func (h *Host) takeDoubts() (look, []string) {
	h.scopeMu.Lock()
	defer h.scopeMu.Unlock()
	l, by := h.doubts.look, slices.Sorted(maps.Keys(h.doubts.by))
	h.doubts.look, h.doubts.by = 0, nil
	if !h.doubts.listening {
		l = lookAll
	}
	return l.with(), by
}

// applied is the outcome of the last Apply; the zero value is that of none.
type applied struct {
	cfg     Config
	desired Desired
	linkOf  map[string]link
	tables  map[int]bool // whose routes are ours to look at; nil before the first Apply
	// localBehind: see apply.
	localBehind bool
	// complete: everything was read and is as it should be.
	complete bool
}

// tables are those that hold routes of ours.
func (d Desired) tables() map[int]bool {
	t := map[int]bool{names.TableUnassigned: true}
	for _, r := range d.Routes {
		t[r.Table] = true
	}
	return t
}

// clone copies what a caller might change.
func (c Config) clone() Config {
	c.ENIs = slices.Clone(c.ENIs)
	for i := range c.ENIs {
		c.ENIs[i].Pool = slices.Clone(c.ENIs[i].Pool)
	}
	c.VPCCIDRs, c.ExcludeSNATCIDRs = slices.Clone(c.VPCCIDRs), slices.Clone(c.ExcludeSNATCIDRs)
	c.Egress = slices.Clone(c.Egress)
	c.ExternalServiceCIDRs = slices.Clone(c.ExternalServiceCIDRs)
	return c
}

func (c Config) equal(o Config) bool { return reflect.DeepEqual(c, o) }

// maxPID is above every process id there is (PID_MAX_LIMIT). Sockets beyond a process's first have other port numbers.
const maxPID = 1 << 22

// suspect names the process whose netlink socket has a port number; empty if it is this process, or if the number
// says nothing. A program that has ended, or is in another PID namespace, has no name.
func suspect(port uint32) string {
	if port == 0 || port >= maxPID || int(port) == os.Getpid() {
		return ""
	}
	pid := strconv.Itoa(int(port))
	name, err := os.ReadFile("/proc/" + pid + "/comm")
	if err != nil {
		return "pid " + pid
	}
	return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(name)), pid)
}

// pollPeriod is how often everything is looked at, for what the kernel sends no event about, or none that was heard.
const pollPeriod = 25 * time.Second
