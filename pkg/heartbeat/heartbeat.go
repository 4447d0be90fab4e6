// Package heartbeat is how the CNI plugin's STATUS tells an ipamd that restarts from one that is gone. While it runs,
// ipamd writes the machine's uptime into a file every Period; the file of an ipamd that ended tells when that was.
// Uptime, because the clock on the wall is set while a node boots, and a step of it would make the node NotReady.
//
// The file is one line of 20 decimal digits: nanoseconds since boot, suspended time included. It is overwritten in
// place, so that a full file system cannot keep it from being renewed, and never synced: the next boot does not want it.
//
// The package is linked into the plugin: it imports nothing but the standard library and system calls.
package heartbeat

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Period is the time between two heartbeats. What reads them has to be patient for several.
const Period = 10 * time.Second

const digits = 20

// Uptime is the time since the machine booted.
func Uptime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, os.NewSyscallError("clock_gettime", err)
	}
	return time.Duration(ts.Nano()), nil
}

// File is a heartbeat's path.
type File string

// Beat writes a heartbeat.
func (f File) Beat(uptime time.Duration) error {
	file, err := os.OpenFile(string(f), os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(fmt.Appendf(nil, "%0*d\n", digits, uptime), 0)
	return errors.Join(err, file.Close())
}

// Age is how long ago the last heartbeat was. One that was written before the last boot ends in ErrOther, as does what
// is none.
func (f File) Age(uptime time.Duration) (time.Duration, error) {
	text, err := os.ReadFile(string(f))
	if err != nil {
		return 0, err
	}
	if len(text) != digits+1 || text[digits] != '\n' {
		return 0, fmt.Errorf("%s: %w", f, ErrOther)
	}
	at, err := strconv.ParseInt(string(text[:digits]), 10, 64)
	if age := uptime - time.Duration(at); err == nil && at >= 0 && age >= 0 {
		return age, nil
	}
	return 0, fmt.Errorf("%s: %w", f, ErrOther)
}

// ErrOther says that a file is no heartbeat of this boot.
var ErrOther = errors.New("no heartbeat since the machine booted")

// Ticker is what Run waits for: a clock's ticker of Period.
type Ticker interface {
	Chan() <-chan time.Time
}

// Run writes a heartbeat now and at every tick until ctx ends. Failures go to warn: one that lasts makes the node look
// as if it had no ipamd.
func (f File) Run(ctx context.Context, ticker Ticker, warn func(error)) {
	for {
		uptime, err := Uptime()
		if err == nil {
			err = f.Beat(uptime)
		}
		if err != nil {
			warn(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.Chan():
		}
	}
}
