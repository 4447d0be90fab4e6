package fleet

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
)

// WriteTable prints a result for people.
func (r Result) WriteTable(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "%d × %v\t%s, trace %s, %.4g h, seed %d\n", r.Nodes, r.InstanceTypes, r.Algorithm, r.Trace, r.Hours, r.Seed)
	fmt.Fprintf(t, "settings\t%s\n", r.Settings)
	fmt.Fprintf(t, "time to ready\t%s\n", r.Ready)
	fmt.Fprintf(t, "pods\t%d, %d ADDs, %d of them failed; %d pods never started\n", r.Pods, r.Adds, r.FailedAdds, r.NeverStarted)
	fmt.Fprintf(t, "ADD wait\t%s\n", r.AddWait)
	fmt.Fprintf(t, "address-hours\t%.1f unused = %.1f in all − %.1f assigned − %.1f cooling\n",
		r.UnusedHours, r.TotalHours, r.AssignedHours, r.CoolingHours)
	fmt.Fprintf(t, "peak\t%d addresses, the ENIs' own included\n", r.PeakAddresses)
	r.calls.write(t, "EC2 calls")
	if x := r.Restart; x != nil {
		fmt.Fprintf(t, "after the restart\t\n")
		fmt.Fprintf(t, "  serving\t%s\n", x.Serving)
		fmt.Fprintf(t, "  verified\t%s\n", x.Verified)
		x.calls.write(t, "  EC2 calls")
	}
	fmt.Fprintf(t, "simulated\t%d events in %.1f s\n", r.Events, r.RealSeconds)
	_ = t.Flush() // as with any print, there is nobody to tell
}

// String shows the quantiles.
func (q Quantiles) String() string {
	if q.Count == 0 {
		return "none"
	}
	return fmt.Sprintf("p50 %s, p99 %s, max %s", seconds(q.P50), seconds(q.P99), seconds(q.Max))
}

func seconds(s float64) string {
	if s > 0 && s < 0.1 {
		return fmt.Sprintf("%.2g ms", s*1000)
	}
	return fmt.Sprintf("%.2f s", s)
}

// ThrottledShare is the part of the calls that EC2 throttled.
func (c calls) ThrottledShare() float64 {
	if total(c.All) == 0 {
		return 0
	}
	return float64(total(c.Throttled)) / float64(total(c.All))
}

func (c calls) write(w io.Writer, title string) {
	fmt.Fprintf(w, "%s\t%d, %d throttled (%.1f %%)\n", title, total(c.All), total(c.Throttled), 100*c.ThrottledShare())
	for _, action := range c.sortedActions() {
		fmt.Fprintf(w, "    %s\t%d", action, c.All[action])
		if n := c.Throttled[action]; n > 0 {
			fmt.Fprintf(w, ", %d throttled", n)
		}
		if n := c.Refused[action]; n > 0 {
			fmt.Fprintf(w, ", %d refused", n)
		}
		fmt.Fprintln(w)
	}
}

// Sum is a comparison as a whole.
type Sum struct {
	Unused, UpstreamUnused float64
	Calls, UpstreamCalls   int
	// WorstUnused and WorstCalls are the highest ratios of a cell.
	WorstUnused, WorstCalls float64
	// WaitsNotBetter are the cells whose p99 of the ADD wait is not below upstream's, where upstream's pods wait at all.
	WaitsNotBetter []string
}

// SumUp sums up the cells.
func SumUp(cells []Cell) (s Sum) {
	for _, c := range cells {
		unused, calls := c.Ratios()
		s.Unused, s.UpstreamUnused = s.Unused+c.Ours.UnusedHours, s.UpstreamUnused+c.Upstream.UnusedHours
		s.Calls, s.UpstreamCalls = s.Calls+c.Ours.Calls(), s.UpstreamCalls+c.Upstream.Calls()
		s.WorstUnused, s.WorstCalls = max(s.WorstUnused, unused), max(s.WorstCalls, calls)
		// Both answer in no time when there is an address; ours writes it down first.
		if c.Ours.AddWait.P99 > c.Upstream.AddWait.P99 && c.Ours.AddWait.P99 > 2*commitTime.Seconds() {
			s.WaitsNotBetter = append(s.WaitsNotBetter, c.Trace+" on "+c.InstanceType)
		}
	}
	return s
}

// WriteCells prints a comparison.
func WriteCells(w io.Writer, cells []Cell) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "trace\ttype\tunused IP-h\tupstream\tratio\tcalls\tupstream\tratio\tADD wait p99\tupstream\tmean\tupstream\tfailed ADDs\tupstream\t")
	for _, c := range cells {
		o, u := c.Ours, c.Upstream
		unused, calls := c.Ratios()
		fmt.Fprintf(t, "%s\t%s\t%.0f\t%.0f\t%.2f\t%d\t%d\t%.2f\t%s\t%s\t%s\t%s\t%d\t%d\t\n", c.Trace, c.InstanceType, o.UnusedHours, u.UnusedHours, unused,
			o.Calls(), u.Calls(), calls, seconds(o.AddWait.P99), seconds(u.AddWait.P99), seconds(o.AddWait.Mean), seconds(u.AddWait.Mean), o.FailedAdds, u.FailedAdds)
	}
	s := SumUp(cells)
	fmt.Fprintf(t, "sum\t\t%.0f\t%.0f\t%.2f\t%d\t%d\t%.2f\t\t\t\t\t\t\t\n", s.Unused, s.UpstreamUnused, ratio(s.Unused, s.UpstreamUnused),
		s.Calls, s.UpstreamCalls, ratio(float64(s.Calls), float64(s.UpstreamCalls)))
	_ = t.Flush()
}

// Bounds of a comparison.
const (
	worstRatio = 1.05
	sumRatio   = 1.0
)

// Check says what is worse than it may be.
func (s Sum) Check() error {
	var errs []error
	over := func(what string, ratio, most float64) {
		if ratio > most {
			errs = append(errs, fmt.Errorf("%s: %.3f times upstream's, and at most %.2f is good enough", what, ratio, most))
		}
	}
	over("unused address-hours of a cell", s.WorstUnused, worstRatio)
	over("EC2 calls of a cell", s.WorstCalls, worstRatio)
	over("unused address-hours in sum", ratio(s.Unused, s.UpstreamUnused), sumRatio)
	over("EC2 calls in sum", ratio(float64(s.Calls), float64(s.UpstreamCalls)), sumRatio)
	for _, cell := range s.WaitsNotBetter {
		errs = append(errs, fmt.Errorf("%s: pods wait longer than upstream's", cell))
	}
	return errors.Join(errs...)
}
