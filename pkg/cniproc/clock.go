// Package cniproc is what our CNI plugins have in common as processes that live for milliseconds: when they were started,
// and the log that many of them write to at once.
package cniproc

import (
	"bytes"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// ticksPerSecond is USER_HZ: 100 on every architecture that Go supports.
const ticksPerSecond = 100

// ProcessStart is when the runtime executed this process. On a node that starts many pods at once, seconds can pass
// between that and main, and they count against the runtime's patience.
func ProcessStart() time.Time {
	now := time.Now()
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return now
	}
	var sinceBoot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &sinceBoot); err != nil {
		return now
	}
	started, ok := startTicks(stat)
	age := time.Duration(sinceBoot.Nano()) - started
	if !ok || age < 0 {
		return now
	}
	return now.Add(-age)
}

// startTicks reads field 22 of /proc/<pid>/stat, the start of the process after boot. The second field is the name of
// the program in parentheses and may contain anything.
func startTicks(stat []byte) (time.Duration, bool) {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const start = 22 - 3 // the first field behind the name is number 3
	if len(fields) <= start {
		return 0, false
	}
	ticks, err := strconv.ParseInt(string(fields[start]), 10, 64)
	if err != nil {
		return 0, false
	}
	return time.Duration(ticks) * (time.Second / ticksPerSecond), true
}
