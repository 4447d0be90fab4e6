package imds

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"vpccni/lab/ec2"
)

const localIPs = "network/interfaces/macs/02:00:00:00:00:00/local-ipv4s"

func (l *lab) fault(t *testing.T, f Fault) string {
	t.Helper()
	id, err := l.server.AddFault(f)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// move gives i-1's first ENI another primary address.
func (l *lab) move(addr string) {
	l.cloud.change(func() {
		l.cloud.enis["i-1"] = []ec2.ENI{eni("eni-1", 0, addr)}
	})
}

func TestFaultStatus(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.fault(t, Fault{Instance: "i-1", Path: "meta-data/network/interfaces/macs/*/local-ipv4s", Status: 500, Count: 2})
	got := []string{
		l.get(t, "i-2", localIPs), l.get(t, "i-1", "mac"),
		l.get(t, "i-1", localIPs), l.get(t, "i-1", localIPs), l.get(t, "i-1", localIPs),
	}
	want := []string{
		"10.0.0.6", "02:00:00:00:00:00",
		"Internal Server Error", "Internal Server Error", "10.0.0.4\n10.0.0.9\n10.0.0.5",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if left := l.server.Faults(); len(left) != 0 {
		t.Errorf("left after its count: %+v", left)
	}
	l.fault(t, Fault{Path: "api/token", Status: 404})
	if code, _ := l.do(t, "i-1", http.MethodPut, "/latest/api/token", tokenTTLHeader, "60"); code != 404 {
		t.Errorf("token: %d", code)
	}
}

func TestFaultOmit(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.cloud.change(func() { l.cloud.enis["i-1"] = append(l.cloud.enis["i-1"], eni("eni-3", 1, "10.0.0.7")) })
	id := l.fault(t, Fault{Path: "/latest/meta-data/network/interfaces/macs/02:00:00:00:00:01/", Omit: true})
	for path, want := range map[string]string{
		"network/interfaces/macs/":                               "02:00:00:00:00:00/",
		"network/interfaces/macs/02:00:00:00:00:01/interface-id": "Not Found",
		"network/interfaces/macs/02:00:00:00:00:00/interface-id": "eni-1",
	} {
		if got := l.get(t, "i-1", path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	if f := l.server.Faults(); len(f) != 1 || f[0].Hits != 2 {
		t.Errorf("faults %+v, want one with two hits", f)
	}
	if !l.server.RemoveFault(id) || l.server.RemoveFault(id) {
		t.Error("a rule can be removed once")
	}
	if got := l.get(t, "i-1", "network/interfaces/macs/02:00:00:00:00:01/interface-id"); got != "eni-3" {
		t.Errorf("after the rule: %q", got)
	}
}

func TestFaultDelay(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.fault(t, Fault{Path: "meta-data/mac", Delay: 3 * time.Second})
	done := make(chan string)
	go func() { done <- l.get(t, "i-1", "mac") }()
	if err := l.clock.BlockUntilContext(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-done:
		t.Fatalf("answered %q at once", got)
	default:
	}
	l.clock.Advance(3 * time.Second)
	if got := <-done; got != "02:00:00:00:00:00" {
		t.Errorf("got %q", got)
	}
	if r := l.server.Requests(); len(r) != 1 || r[0].Duration != 3*time.Second || len(r[0].Faults) != 1 {
		t.Errorf("requests %+v", r)
	}
}

func TestFaultFreeze(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.fault(t, Fault{Instance: "i-1", Freeze: true, Path: "meta-data/network"})
	l.move("10.0.0.77")
	if got := l.get(t, "i-1", localIPs); got != "10.0.0.4\n10.0.0.9\n10.0.0.5" {
		t.Errorf("frozen: %q", got)
	}
	if got := l.get(t, "i-1", "local-ipv4"); got != "10.0.0.77" {
		t.Errorf("outside of the rule's path: %q", got)
	}
	l.clock.Advance(24 * time.Hour)
	if got := l.get(t, "i-1", localIPs); got != "10.0.0.4\n10.0.0.9\n10.0.0.5" {
		t.Errorf("a day later: %q", got)
	}
	l.server.RemoveFault(l.server.Faults()[0].ID)
	if got := l.get(t, "i-1", localIPs); got != "10.0.0.77" {
		t.Errorf("after the rule: %q", got)
	}
	// A rule for everybody freezes those that have asked before at once.
	l.fault(t, Fault{Freeze: true})
	l.move("10.0.0.78")
	if got := l.get(t, "i-1", localIPs); got != "10.0.0.77" {
		t.Errorf("frozen with the others: %q", got)
	}
}

func TestFaultLag(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.fault(t, Fault{Instance: "i-1", Lag: 10 * time.Second})
	l.clock.Advance(time.Minute)
	l.move("10.0.0.77") // at 60 s
	l.server.Changed("i-1")
	l.clock.Advance(5 * time.Second)
	l.move("10.0.0.78") // at 65 s
	l.server.Changed("i-1")
	want := func(what, addr string) {
		t.Helper()
		if got := l.get(t, "i-1", "local-ipv4"); got != addr {
			t.Errorf("%s: %q, want %q", what, got, addr)
		}
	}
	want("5 s after the first change", "10.0.0.4")
	l.clock.Advance(5 * time.Second)
	want("10 s after the first change", "10.0.0.77")
	l.clock.Advance(4 * time.Second)
	want("9 s after the second change", "10.0.0.77")
	l.clock.Advance(time.Second)
	want("10 s after the second change", "10.0.0.78")
	if n := len(l.server.history["i-1"]); n > 2 {
		t.Errorf("%d states remembered that nobody can ask for", n)
	}
	// Credentials are renewed all the time; they are no reason to remember a state.
	for range 10 {
		l.clock.Advance(time.Hour)
		l.get(t, "i-1", "local-ipv4")
	}
	if n := len(l.server.history["i-1"]); n != 1 {
		t.Errorf("%d states remembered of an instance that does not change", n)
	}
}

func TestFaultRefused(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for _, f := range []Fault{
		{}, {Path: "meta-data"}, {Path: "[", Omit: true}, {Status: 200}, {Delay: -1}, {Omit: true, Freeze: true},
		{Lag: time.Second, Status: 500}, {Omit: true, Count: -1},
	} {
		if id, err := l.server.AddFault(f); err == nil {
			t.Errorf("%+v: accepted as %s", f, id)
		}
	}
}

func TestCovers(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		glob, name string
		want       bool
	}{
		{"", "meta-data/mac", true},
		{"meta-data", "meta-data/mac", true},
		{"meta-data/*", "meta-data/network/interfaces", true},
		{"meta-data/m*", "meta-data/network/mac", false},
		{"meta-data/mac", "meta-data/mac", true},
		{"meta-data/mac/x", "meta-data/mac", false},
		{"*", rootPath, false},
	} {
		if got := covers(tc.glob, tc.name); got != tc.want {
			t.Errorf("covers(%q, %q) = %v", tc.glob, tc.name, got)
		}
	}
}
