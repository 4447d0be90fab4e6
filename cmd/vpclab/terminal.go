package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// terminal is a new terminal for a program in the lab, connected with the one that this command runs on. The
// program's own cannot be handed over: it controls this command's session already.
type terminal struct {
	master, slave *os.File
	outer         *os.File
	saved         *unix.Termios
	resized       chan os.Signal
	output        sync.WaitGroup
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func openTerminal(in, out *os.File) (*terminal, error) {
	t := &terminal{outer: in, resized: make(chan os.Signal, 1)}
	var err error
	if t.master, err = os.OpenFile("/dev/ptmx", os.O_RDWR, 0); err != nil {
		return nil, fmt.Errorf("new terminal: %w", err)
	}
	if err := t.openSlave(); err != nil {
		_ = t.master.Close()
		return nil, fmt.Errorf("new terminal: %w", err)
	}
	if err := t.raw(); err != nil {
		_ = t.master.Close()
		_ = t.slave.Close()
		return nil, fmt.Errorf("terminal settings: %w", err)
	}
	t.copySize()
	signal.Notify(t.resized, unix.SIGWINCH)
	go func() {
		for range t.resized {
			t.copySize()
		}
	}()
	// Reading from the keyboard cannot be interrupted; the goroutine ends with the process.
	go func() { _, _ = io.Copy(t.master, in) }()
	t.output.Go(func() { _, _ = io.Copy(out, t.master) })
	return t, nil
}

func (t *terminal) openSlave() error {
	fd := int(t.master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return err
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return err
	}
	t.slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	return err
}

// raw leaves the interpretation of keys to the program's terminal.
func (t *terminal) raw() error {
	var err error
	if t.saved, err = unix.IoctlGetTermios(int(t.outer.Fd()), unix.TCGETS); err != nil {
		return err
	}
	raw := *t.saved
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	return unix.IoctlSetTermios(int(t.outer.Fd()), unix.TCSETS, &raw)
}

func (t *terminal) copySize() {
	if size, err := unix.IoctlGetWinsize(int(t.outer.Fd()), unix.TIOCGWINSZ); err == nil {
		_ = unix.IoctlSetWinsize(int(t.master.Fd()), unix.TIOCSWINSZ, size)
	}
}

// restore waits for the program's last output and gives the outer terminal its settings back.
func (t *terminal) restore() {
	signal.Stop(t.resized)
	// The master reads an error once nobody has the slave open any more.
	_ = t.slave.Close()
	t.output.Wait()
	_ = unix.IoctlSetTermios(int(t.outer.Fd()), unix.TCSETS, t.saved)
	_ = t.master.Close()
}
