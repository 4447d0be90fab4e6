package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

// Only a console on which every suite ran to its end, with at least one test and none that failed or was skipped, is a pass.
func TestReport(t *testing.T) {
	t.Parallel()
	const (
		booted = "[0.1] noise\r\n@vm booted 6.1\r\n"
		suite  = "@vm begin p\n=== RUN   TestA\n--- PASS: TestA (0.1s)\n    --- PASS: TestA/x (0.0s)\n        --- PASS: TestA/x/1 (0.0s)\n@vm end p <nil>\n"
		done   = "@vm done\n"
	)
	for name, tt := range map[string]struct {
		console string
		ok      bool
		last    string
	}{
		"all well":             {booted + suite + done, true, "2 passed, 0 failed"},
		"a suite is missing":   {booted + done, false, "0 passed, 0 failed"},
		"no end":               {booted + suite, false, "2 passed, 1 failed"},
		"panic in a suite":     {booted + "@vm begin p\n--- PASS: TestA (0s)\nKernel panic\n", false, "1 passed, 2 failed"},
		"a test fails":         {booted + strings.Replace(suite, "PASS: TestA/x ", "FAIL: TestA/x ", 1) + done, false, "1 passed, 1 failed"},
		"a round fails":        {booted + strings.Replace(suite, "PASS: TestA/x/1", "FAIL: TestA/x/1", 1) + done, false, "2 passed, 1 failed"},
		"a test is skipped":    {booted + strings.Replace(suite, "PASS: TestA/x ", "SKIP: TestA/x ", 1) + done, false, "1 passed, 1 failed"},
		"the binary fails":     {booted + strings.Replace(suite, "<nil>", "exit status 1", 1) + done, false, "2 passed, 1 failed"},
		"nothing ran":          {booted + "@vm begin p\n@vm end p <nil>\n" + done, false, "0 passed, 1 failed"},
		"never came to a test": {"[0.1] Kernel panic", false, "0 passed, 1 failed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var r report
			r.read(strings.NewReader(tt.console))
			var out bytes.Buffer
			r.print(&out, time.Second)
			if ok := r.passed(1); ok != tt.ok || !strings.Contains(out.String(), tt.last) {
				t.Errorf("passed: %v, want %v and %q\n%s", ok, tt.ok, tt.last, &out)
			}
		})
	}
}

// The archive is cpio's: each header is 110 bytes of hexadecimal digits, directories come before what is in them.
func TestArchive(t *testing.T) {
	t.Parallel()
	a := newArchive()
	a.program("/a/b/c", []byte("content"))
	a.link("a/l", "/a/b")
	var names []string
	b := a.bytes()
	for len(b) > 0 {
		var mode, size, name uint32
		if _, err := fmt.Sscanf(string(b[14:22])+" "+string(b[54:62])+" "+string(b[94:102]), "%x %x %x", &mode, &size, &name); err != nil || string(b[:6]) != "070701" {
			t.Fatalf("%q: %v", b[:110], err)
		}
		names = append(names, fmt.Sprintf("%s %o %d", b[110:110+name-1], mode, size))
		b = b[(110+name+3)&^3:]
		b = b[(size+3)&^3:]
	}
	want := "[a 40755 0 a/b 40755 0 a/b/c 100755 7 a/l 120777 4 TRAILER!!! 0 0]"
	if got := fmt.Sprint(names); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
