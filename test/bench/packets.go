package main

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"vpccni/test/bench/stats"

	"golang.org/x/sys/unix"
)

// Pods that are on the node while packets are measured.
var packetLevels = []int{1, 50, 250, 700, 1000}

// The modes of addressing, and the floor.
const (
	modePlain     = "plain routing"
	modeSecondary = "secondary IPs"
	modePrefixes  = "prefixes"
)

// The directions of a packet, both through the node.
const (
	fromPod = "pod→peer"
	toPod   = "peer→pod"
)

type packetKey struct {
	pods            int
	mode, direction string
}

// measurePackets measures what it costs to send, forward and receive a small packet.
func measurePackets(ctx context.Context, o options) ([]packetRow, error) {
	effort := o.effort()
	var nodes []*packetNode
	for _, pods := range packetLevels {
		progress("packets: nodes with %d pods", pods)
		for _, modes := range [][]string{{modePlain}, {modeSecondary, modePrefixes}} {
			node, err := newPacketNode(ctx, pods, modes)
			if err != nil {
				return nil, fmt.Errorf("node with %d pods, %s: %w", pods, modes[0], err)
			}
			nodes = append(nodes, node)
			defer node.close()
		}
	}
	runs := map[packetKey][]float64{}
	// A node's first round only warms it up.
	for round := range effort.rounds + 1 {
		progress("packets: round %d of %d", round, effort.rounds)
		for _, node := range nodes {
			for _, mode := range node.modes {
				if err := ctx.Err(); err != nil {
					return nil, err
				}
				if err := node.use(ctx, mode); err != nil {
					return nil, fmt.Errorf("node with %d pods, %s: %w", node.pods, mode, err)
				}
				for _, direction := range []string{fromPod, toPod} {
					cost, err := node.send(direction, effort.packets)
					if err != nil {
						return nil, fmt.Errorf("node with %d pods, %s, %s: %w", node.pods, mode, direction, err)
					}
					if round > 0 {
						key := packetKey{node.pods, mode, direction}
						runs[key] = append(runs[key], cost)
					}
				}
			}
		}
	}
	return packetRows(runs), nil
}

// flow is a pair of connected UDP sockets in two namespaces.
type flow struct{ from, to int }

// packetSize is the payload, in bytes: what counts is the cost of a packet, not of its bytes.
const packetSize = 16

// batch is how many packets are sent before they are received; it fits any socket's buffer.
const batch = 64

// cost sends packets through the flow and returns the CPU time of each, in nanoseconds. One thread on one processor
// sends and receives: the kernel forwards in the sender's context, so the thread's CPU time holds all of the way. A
// packet that is lost is an error.
func (f flow) cost(packets int) (float64, error) {
	var cost float64
	err := onThread(func() error {
		var allowed unix.CPUSet
		if err := unix.SchedGetaffinity(0, &allowed); err != nil {
			return err
		}
		var one unix.CPUSet
		one.Set(firstCPU(allowed))
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return fmt.Errorf("pin the sender: %w", err)
		}
		// Neighbours, neighbour entries and caches.
		if err := f.exchange(batch); err != nil {
			return err
		}
		before, err := threadTime()
		if err != nil {
			return err
		}
		for sent := 0; sent < packets; sent += batch {
			if err := f.exchange(batch); err != nil {
				return err
			}
		}
		after, err := threadTime()
		cost = float64(after-before) / float64((packets+batch-1)/batch*batch)
		return err
	})
	return cost, err
}

// exchange sends n packets and receives them.
func (f flow) exchange(n int) error {
	var packet, buf [packetSize]byte
	for range n {
		if _, err := unix.Write(f.from, packet[:]); err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	for range n {
		// The socket's time-out is for packets that wait for a neighbour's address; the others are there already.
		if _, err := unix.Read(f.to, buf[:]); err != nil {
			return fmt.Errorf("a packet is lost: %w", err)
		}
	}
	return nil
}

func firstCPU(set unix.CPUSet) int {
	for cpu := range runtime.NumCPU() + 1024 {
		if set.IsSet(cpu) {
			return cpu
		}
	}
	return 0
}

func threadTime() (time.Duration, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return time.Duration(ts.Nano()), err
}

// packetRow is the cost of a packet in one mode at one level, beside plain routing's with as many pods.
type packetRow struct {
	Pods      int          `json:"pods"`
	Mode      string       `json:"mode"`
	Direction string       `json:"direction"`
	NsPerPkt  stats.Figure `json:"cpuNanosecondsPerPacket"`
	Floor     stats.Figure `json:"floorCPUNanosecondsPerPacket"`
	Ratio     stats.Figure `json:"ratioToFloor"`
	// Growth is the cost in proportion to that with one pod.
	Growth stats.Figure `json:"ratioToOnePod"`
}

func packetRows(runs map[packetKey][]float64) []packetRow {
	var rows []packetRow
	for _, mode := range []string{modePlain, modeSecondary, modePrefixes} {
		for _, direction := range []string{fromPod, toPod} {
			for _, pods := range packetLevels {
				of := stats.Over(runs[packetKey{pods, mode, direction}])
				floor := stats.Over(runs[packetKey{pods, modePlain, direction}])
				one := stats.Over(runs[packetKey{packetLevels[0], mode, direction}])
				rows = append(rows, packetRow{
					Pods: pods, Mode: mode, Direction: direction, NsPerPkt: of, Floor: floor,
					Ratio: stats.Ratio(of, floor), Growth: stats.Ratio(of, one),
				})
			}
		}
	}
	return rows
}
