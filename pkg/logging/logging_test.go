package logging

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestLineHasTheKeysOfTheField(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log, closer := Open(Options{File: "stdout", Level: slog.LevelDebug, Stdout: &out})
	log.Warn("hello", "took", 1500*time.Millisecond, "error", errors.New("no luck"), slog.Group("g", "time", "x"))
	if err := closer.Close(); err != nil {
		t.Error(err)
	}
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"ts":     `^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(Z|[+-]\d{4})$`,
		"level":  "^warn$",
		"caller": `^logging/logging_test\.go:\d+$`,
		"msg":    "^hello$",
		"took":   `^1\.5s$`,
		"error":  "^no luck$",
	} {
		got, _ := line[key].(string)
		if !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%s is %q, want %s", key, got, want)
		}
	}
	if g, _ := line["g"].(map[string]any); g["time"] != "x" {
		t.Errorf("group %v", line["g"])
	}
}

func TestErrorsAlsoGoToStandardError(t *testing.T) {
	t.Parallel()
	var stderr bytes.Buffer
	path := filepath.Join(t.TempDir(), "new", "ipamd.log")
	log, closer := Open(Options{File: path, Level: slog.LevelInfo, Stderr: &stderr})
	log = log.With("eni", "eni-1").WithGroup("g")
	log.Debug("one")
	log.Info("two", "a", 1)
	log.Error("three", "a", 1)
	if err := closer.Close(); err != nil {
		t.Error(err)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if s := string(file); strings.Contains(s, "one") || !strings.Contains(s, "two") || !strings.Contains(s, `"eni":"eni-1","g":{"a":1}`) {
		t.Errorf("file: %s", s)
	}
	if s := stderr.String(); strings.Contains(s, "two") || !strings.Contains(s, "three") || !strings.Contains(s, "eni-1") {
		t.Errorf("standard error: %s", s)
	}
}

func TestFileThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	var stderr bytes.Buffer
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	log, closer := Open(Options{File: filepath.Join(blocked, "ipamd.log"), Level: slog.LevelInfo, Stderr: &stderr})
	log.Info("still here")
	if err := closer.Close(); err != nil {
		t.Error(err)
	}
	if s := stderr.String(); !strings.Contains(s, "cannot be written") || !strings.Contains(s, "still here") {
		t.Errorf("standard error: %s", s)
	}
}
