// Package logging sets up the process's logger: JSON lines with the keys that the field's log collectors know (ts,
// level, caller, msg), rotated, errors also on standard error.
package logging

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"gopkg.in/natefinch/lumberjack.v2"
)

// Rotation of a log file, as operators know it: at 100 MB, five old ones for 30 days, compressed.
const (
	maxMegabytes = 100
	maxBackups   = 5
	maxDays      = 30
)

// timeFormat is ISO 8601 with milliseconds.
const timeFormat = "2006-01-02T15:04:05.000Z0700"

// Options say what is logged, and where to.
type Options struct {
	// File is a path, "stdout" or "stderr".
	File  string
	Level slog.Level
	// Stderr gets errors too when File is a path, and everything when the path cannot be written.
	Stderr io.Writer
	Stdout io.Writer
}

// Open returns a logger and what closes its file. A file that cannot be written does not keep a node from working:
// the logger then writes to standard error, and says why first.
func Open(o Options) (*slog.Logger, io.Closer) {
	switch o.File {
	case "stdout":
		return slog.New(newHandler(o.Stdout, o.Level)), nopCloser{}
	case "stderr":
		return slog.New(newHandler(o.Stderr, o.Level)), nopCloser{}
	}
	if err := writable(o.File); err != nil {
		log := slog.New(newHandler(o.Stderr, o.Level))
		log.Error("log file cannot be written, logging to standard error", "file", o.File, "error", err)
		return log, nopCloser{}
	}
	file := &lumberjack.Logger{
		Filename: o.File, MaxSize: maxMegabytes, MaxBackups: maxBackups, MaxAge: maxDays, Compress: true,
	}
	return slog.New(tee{newHandler(file, o.Level), newHandler(o.Stderr, max(o.Level, slog.LevelError))}), file
}

type nopCloser struct{}

func (nopCloser) Close() error { return nil }

// writable finds out now what lumberjack would only find out with the first line.
func writable(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func newHandler(w io.Writer, level slog.Level) slog.Handler {
	return slog.NewJSONHandler(w, &slog.HandlerOptions{AddSource: true, Level: level, ReplaceAttr: replace})
}

// replace gives the built-in keys the names and forms that they have had on these nodes for years, and durations a
// unit.
func replace(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 {
		switch a.Key {
		case slog.TimeKey:
			if t, ok := a.Value.Any().(time.Time); ok {
				return slog.String("ts", t.Format(timeFormat))
			}
		case slog.LevelKey:
			if l, ok := a.Value.Any().(slog.Level); ok {
				return slog.String("level", strings.ToLower(l.String()))
			}
		case slog.SourceKey:
			if s, ok := a.Value.Any().(*slog.Source); ok {
				return slog.String("caller", shortSource(s))
			}
		}
	}
	if a.Value.Kind() == slog.KindDuration {
		return slog.String(a.Key, a.Value.Duration().String())
	}
	return a
}

// shortSource is "dir/file.go:line".
func shortSource(s *slog.Source) string {
	dir, file := filepath.Split(s.File)
	return filepath.Join(filepath.Base(dir), file) + ":" + strconv.Itoa(s.Line)
}

// tee hands each record to every handler that wants it.
type tee []slog.Handler

func (t tee) Enabled(ctx context.Context, level slog.Level) bool {
	for _, h := range t {
		if h.Enabled(ctx, level) {
			return true
		}
	}
	return false
}

func (t tee) Handle(ctx context.Context, r slog.Record) error {
	var errs []error
	for _, h := range t {
		if h.Enabled(ctx, r.Level) {
			if err := h.Handle(ctx, r.Clone()); err != nil {
				errs = append(errs, fmt.Errorf("write log: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}

func (t tee) WithAttrs(attrs []slog.Attr) slog.Handler {
	out := make(tee, len(t))
	for i, h := range t {
		out[i] = h.WithAttrs(attrs)
	}
	return out
}

func (t tee) WithGroup(name string) slog.Handler {
	out := make(tee, len(t))
	for i, h := range t {
		out[i] = h.WithGroup(name)
	}
	return out
}
