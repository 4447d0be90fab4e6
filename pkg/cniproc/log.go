package cniproc

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLogSize bounds the log file, in bytes; one older file of that size is kept beside it.
const maxLogSize = 20 << 20

// timeFormat is ISO 8601 with milliseconds, as ipamd's log has it.
const timeFormat = "2006-01-02T15:04:05.000Z0700"

// NewLogger writes JSON lines to the file. A log that cannot be written is no reason to refuse a pod, so stderr, where
// runtimes collect it, stands in. So it does for stdout, which belongs to CNI's result.
func NewLogger(file, level string) *slog.Logger {
	var out io.Writer = os.Stderr
	if file != "" && file != "stderr" && file != "stdout" {
		if f, err := openLog(file); err == nil {
			out = f
		}
	}
	return slog.New(slog.NewJSONHandler(out, &slog.HandlerOptions{Level: parseLevel(level), ReplaceAttr: knownKeys}))
}

// knownKeys writes level and time as log pipelines know them, and durations with their unit, as ipamd does.
func knownKeys(groups []string, a slog.Attr) slog.Attr {
	switch {
	case len(groups) > 0:
	case a.Key == slog.TimeKey:
		a = slog.String("ts", a.Value.Time().Format(timeFormat))
	case a.Key == slog.LevelKey:
		a.Value = slog.StringValue(strings.ToLower(a.Value.String()))
	case a.Value.Kind() == slog.KindDuration:
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}

func parseLevel(level string) slog.Level {
	switch strings.ToLower(level) {
	case "info":
		return slog.LevelInfo
	case "warn":
		return slog.LevelWarn
	case "error", "fatal":
		return slog.LevelError
	default:
		return slog.LevelDebug
	}
}

// openLog opens the file to append whole lines to, which needs no lock between plugins that run at once.
func openLog(file string) (*os.File, error) {
	const flags = os.O_APPEND | os.O_CREATE | os.O_WRONLY
	f, err := os.OpenFile(file, flags, 0o644)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return nil, err
		}
		f, err = os.OpenFile(file, flags, 0o644)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil || info.Size() < maxLogSize || !info.Mode().IsRegular() {
		return f, nil
	}
	rotate(f, file)
	if next, err := os.OpenFile(file, flags, 0o644); err == nil {
		_ = f.Close()
		return next, nil
	}
	return f, nil
}

// rotate moves the file away unless another plugin does so now or has done so since it was opened. A runtime may start
// many plugins at once, and a second move would lose what the first one kept.
func rotate(f *os.File, file string) {
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return
	}
	opened, err := f.Stat()
	if err != nil {
		return
	}
	if there, err := os.Stat(file); err != nil || !os.SameFile(opened, there) {
		return
	}
	_ = os.Rename(file, file+".1")
}
