// Package deadline is for a process that must not touch anything after its time is up, even if it was stopped or
// starved in between.
package deadline

import (
	"context"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Err is why nothing may be written any more: ctx has ended, or the clock says that its deadline has passed. In a
// process that was stopped the timer that ends ctx fires some time after everything else has gone on.
func Err(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if at, ok := ctx.Deadline(); ok && !time.Now().Before(at) {
		return context.DeadlineExceeded
	}
	return nil
}

// Kill has the kernel end this process by SIGKILL at a moment, whatever the process is at then. This closes the gap
// between a look at the clock and the system call that follows: SIGKILL reaches a stopped process, too, which then
// makes no further call. An error says that this kernel has no such timer.
func Kill(at time.Time) error {
	// The kernel's struct sigevent. A notify of 0 is SIGEV_SIGNAL.
	event := struct {
		value          uint64
		signal, notify int32
		_              [48]byte
	}{signal: int32(unix.SIGKILL)}
	var id int32
	if _, _, errno := unix.RawSyscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC,
		uintptr(unsafe.Pointer(&event)), uintptr(unsafe.Pointer(&id))); errno != 0 {
		return fmt.Errorf("deadline: %w", os.NewSyscallError("timer_create", errno))
	}
	left := max(time.Until(at), time.Nanosecond) // 0 would switch the timer off
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(left.Nanoseconds())}
	if _, _, errno := unix.RawSyscall6(unix.SYS_TIMER_SETTIME, uintptr(id), 0,
		uintptr(unsafe.Pointer(&spec)), 0, 0, 0); errno != 0 {
		return fmt.Errorf("deadline: %w", os.NewSyscallError("timer_settime", errno))
	}
	return nil
}
