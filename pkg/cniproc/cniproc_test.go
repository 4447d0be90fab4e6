package cniproc

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestProcessStart(t *testing.T) {
	t.Parallel()
	if age := time.Since(ProcessStart()); age < 0 || age > time.Hour {
		t.Errorf("this process is %s old", age)
	}
	for stat, want := range map[string]time.Duration{
		"42 (aws-cni) S 1 42 42 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 5 0 12345 1000 2000": 123450 * time.Millisecond,
		"42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 5 0 1 1000 2000":     10 * time.Millisecond,
		"42 (short) S 1": 0,
		"":               0,
		"1 (x) S 1 42 42 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 5 0 never 1000 2000": 0,
	} {
		if got, ok := startTicks([]byte(stat)); got != want || ok != (want != 0) {
			t.Errorf("%q: got %s %t", stat, got, ok)
		}
	}
}

func TestLogIsBounded(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "log", "plugin.log")
	NewLogger(file, "INFO").Info("first")
	if err := os.Truncate(file, maxLogSize); err != nil {
		t.Fatal(err)
	}
	stale, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer stale.Close()
	NewLogger(file, "INFO").Info("second")
	// Another plugin that opened the full file before it was moved must not move the new one over it.
	rotate(stale, file)
	info, err := os.Stat(file + ".1")
	if err != nil || info.Size() != maxLogSize {
		t.Errorf("the older file: %v %v", info, err)
	}
	text, err := os.ReadFile(file)
	if err != nil || bytes.Count(text, []byte("\n")) != 1 || !bytes.Contains(text, []byte(`"msg":"second"`)) {
		t.Errorf("the newer file: %s %v", text, err)
	}
	if line := string(text); !strings.Contains(line, `{"ts":"`) || !strings.Contains(line, `"level":"info"`) {
		t.Error(line)
	}
}
