package demo

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// check is one line of the table at the end.
type check struct {
	Group  string `json:"group"`
	Name   string `json:"name"`
	Figure string `json:"figure"`
	Error  string `json:"error,omitempty"`
}

// report collects checks and tells of progress. Its methods may be called concurrently.
type report struct {
	out   io.Writer
	start time.Time

	mu     sync.Mutex
	checks []check
}

// step announces what comes next.
func (r *report) step(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, "\n[%5.1fs] %s\n", time.Since(r.start).Seconds(), fmt.Sprintf(format, args...))
}

// note says something about the step.
func (r *report) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, "         %s\n", fmt.Sprintf(format, args...))
}

// add records a check and prints it.
func (r *report) add(group, name, figure string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := check{Group: group, Name: name, Figure: figure}
	mark := "ok  "
	if err != nil {
		c.Error = err.Error()
		mark = "FAIL"
	}
	r.checks = append(r.checks, c)
	line := name
	if figure != "" {
		line += ": " + figure
	}
	if err != nil {
		line += ": " + err.Error()
	}
	fmt.Fprintf(r.out, "    %s %s\n", mark, line)
}

// failed counts the checks that did not pass.
func (r *report) failed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, c := range r.checks {
		if c.Error != "" {
			n++
		}
	}
	return n
}

// table prints every check with its figure.
func (r *report) table() {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintln(r.out)
	w := tabwriter.NewWriter(r.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "RESULT\tGROUP\tCHECK\tFIGURE")
	for _, c := range r.checks {
		result, figure := "ok", c.Figure
		if c.Error != "" {
			result, figure = "FAIL", strings.TrimSpace(c.Figure+"  "+c.Error)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", result, c.Group, c.Name, figure)
	}
	_ = w.Flush()
}
