package main

import (
	"fmt"
	"io"

	"vpccni/test/bench/stats"
)

// pluginReport is what was measured of the plugin.
type pluginReport struct {
	Rows   []pluginRow `json:"rows"`
	Steps  []stepRow   `json:"steps"`
	Storms []stormRow  `json:"storms"`
	Trace  []traceRow  `json:"trace,omitempty"`
	Goals  []goalRow   `json:"goals"`
	// RSS is the most memory of an ADD that was resident, in MB.
	RSS stats.Figure `json:"maxRSSMegabytes"`
}

// pluginRow is the cost of one operation at one level, beside the empty program's in the same rounds.
type pluginRow struct {
	Operation string `json:"operation"`
	Pods      int    `json:"pods"`
	Parallel  int    `json:"parallel"`
	// Wall times in milliseconds: the median of each round, and quantiles over all executions.
	Wall    stats.Figure `json:"wallMilliseconds"`
	WallP50 float64      `json:"wallP50Milliseconds"`
	WallP99 float64      `json:"wallP99Milliseconds"`
	// CPU is user and system time of the process, in milliseconds; Floor that of the empty program.
	CPU    stats.Figure `json:"cpuMilliseconds"`
	Floor  stats.Figure `json:"floorCPUMilliseconds"`
	Ratio  stats.Figure `json:"cpuRatioToFloor"`
	CPUP50 float64      `json:"cpuP50Milliseconds"`
	CPUP99 float64      `json:"cpuP99Milliseconds"`
	// PerSecond is how many executions ended well in a second.
	PerSecond  stats.Figure `json:"perSecond"`
	Executions int          `json:"executions"`
	Failures   int          `json:"failures"`
}

func pluginRows(measured cells) []pluginRow {
	var rows []pluginRow
	for _, parallel := range []int{1, burst} {
		for _, op := range operations {
			for _, pods := range pluginLevels {
				c, floor := measured.at(pods, parallel, op), stats.Over(measured.at(pods, parallel, opEmpty).cpuRuns)
				cpu := stats.Over(c.cpuRuns)
				rows = append(rows, pluginRow{
					Operation: op, Pods: pods, Parallel: parallel,
					Wall: stats.Over(c.wallRuns), WallP50: stats.Quantile(c.wall, 0.5), WallP99: stats.Quantile(c.wall, 0.99),
					CPU: cpu, Floor: floor, Ratio: stats.Ratio(cpu, floor),
					CPUP50: stats.Quantile(c.cpu, 0.5), CPUP99: stats.Quantile(c.cpu, 0.99),
					PerSecond: stats.Over(c.rate), Executions: len(c.wall) + c.failures, Failures: c.failures,
				})
			}
		}
	}
	return rows
}

// goalRow is one thing that an ADD may cost at most.
type goalRow struct {
	What   string       `json:"what"`
	Figure stats.Figure `json:"figure"`
	Goal   float64      `json:"goal"`
	Met    bool         `json:"met"`
}

// The goals of an ADD, as ratios of CPU time.
const (
	floorGoal  = 4
	growthGoal = 1.3
	familyGoal = 1.2
)

// judge sets the figures beside their goals.
func (r *pluginReport) judge() {
	at := func(op string, pods int) pluginRow {
		for _, row := range r.Rows {
			if row.Operation == op && row.Pods == pods && row.Parallel == 1 {
				return row
			}
		}
		return pluginRow{}
	}
	goal := func(what string, f stats.Figure, goal float64) {
		r.Goals = append(r.Goals, goalRow{what, f, goal, f.Median <= goal})
	}
	count := func(what string, n int) { goal(what, stats.Over([]float64{float64(n)}), 0) }
	few, most := pluginLevels[0], pluginLevels[len(pluginLevels)-1]
	add, add6 := at(opAdd, few), at(opAdd6, few)
	goal(fmt.Sprintf("CPU of an ADD with %d pods ÷ empty Go program", few), add.Ratio, floorGoal)
	goal(fmt.Sprintf("CPU of an ADD with %d pods ÷ with %d pods", most, few), stats.Ratio(at(opAdd, most).CPU, add.CPU), growthGoal)
	goal(fmt.Sprintf("CPU of an IPv6 ADD ÷ IPv4, %d pods", few), stats.Ratio(add6.CPU, add.CPU), familyGoal)
	goal(fmt.Sprintf("time of an IPv6 ADD ÷ IPv4, %d pods", few), stats.Ratio(add6.Wall, add.Wall), familyGoal)
	goal(fmt.Sprintf("CPU of an IPv6 ADD ÷ IPv4, %d pods", most), stats.Ratio(at(opAdd6, most).CPU, at(opAdd, most).CPU), familyGoal)
	failures := 0
	for _, storm := range r.Storms {
		failures += storm.Failures
	}
	count(fmt.Sprintf("failures in %d × %d ADDs, %d at once, with %d pods", len(r.Storms), stormSize, burst, most), failures)
	if len(r.Trace) > 0 {
		var never traceRow
		for _, t := range r.Trace {
			never.Dumps, never.Programs, never.Syncs = never.Dumps+t.Dumps, never.Programs+t.Programs, never.Syncs+t.Syncs
		}
		count("dumps of ADD and DEL", never.Dumps)
		count("programs started by ADD and DEL", never.Programs)
		count("syncs of ADD and DEL", never.Syncs)
	}
}

func (r *pluginReport) print(out io.Writer, rounds int) {
	fmt.Fprintf(out, "\nPlugin: milliseconds per execution; medians of %d rounds [smallest–largest]; floor: exec of an empty Go program\n\n", rounds)
	w := table(out, "at once", "operation", "pods", "wall p50", "p99", "CPU p50", "p99", "CPU, rounds", "floor", "× floor", "per s", "failed")
	for _, row := range r.Rows {
		fmt.Fprintf(w, "%d\t%s\t%d\t%.1f\t%.1f\t%.2f\t%.2f\t%s\t%.2f\t%s\t%.0f\t%d of %d\t\n",
			row.Parallel, row.Operation, row.Pods, row.WallP50, row.WallP99, row.CPUP50, row.CPUP99,
			figure(row.CPU, 2), row.Floor.Median, figure(row.Ratio, 1), row.PerSecond.Median, row.Failures, row.Executions)
	}
	_ = w.Flush()
	if len(r.Steps) > 0 {
		fmt.Fprintf(out, "\nWhere an ADD's time goes: what each step adds to the one before, milliseconds, medians\n\n")
		w = table(out, "step", "wall", "CPU", "kernel, mean")
		for _, s := range r.Steps {
			fmt.Fprintf(w, "%s\t%.2f\t%.2f\t%.2f\t\n", s.Step, s.Wall, s.CPU, s.System)
		}
		_ = w.Flush()
	}
	if len(r.RSS.Runs) > 0 {
		fmt.Fprintf(out, "\nResident memory of an ADD, at most: %s MB\n", figure(r.RSS, 1))
	}
	if len(r.Storms) > 0 {
		fmt.Fprintf(out, "\n%d ADDs, %d at once\n\n", stormSize, burst)
		w = table(out, "pods", "seconds", "per s", "wall p50, ms", "max", "failed")
		for _, s := range r.Storms {
			fmt.Fprintf(w, "%d\t%.2f\t%.0f\t%.0f\t%.0f\t%d of %d\t\n", s.Pods, s.Seconds, stormSize/s.Seconds, s.WallP50, s.WallMax, s.Failures, stormSize)
		}
		_ = w.Flush()
	}
	if len(r.Trace) > 0 {
		fmt.Fprintf(out, "\nSystem calls (strace -f)\n\n")
		w = table(out, "operation", "calls", "netlink batches", "dumps", "programs", "syncs")
		for _, t := range r.Trace {
			fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t\n", t.Operation, t.Calls, t.Batches, t.Dumps, t.Programs, t.Syncs)
		}
		_ = w.Flush()
	}
	fmt.Fprintf(out, "\nGoals\n\n")
	w = table(out, "what", "median", "quartiles", "range", "goal", "")
	for _, g := range r.Goals {
		f := g.Figure
		digits, spread, extent := 2, fmt.Sprintf("%.2f–%.2f", f.Q1, f.Q3), fmt.Sprintf("%.2f–%.2f", f.Min, f.Max)
		if len(f.Runs) == 1 { // a count
			digits, spread, extent = 0, "", ""
		}
		fmt.Fprintf(w, "%s\t%.*f\t%s\t%s\t≤ %g\t%s\t\n", g.What, digits, f.Median, spread, extent, g.Goal, verdict(true, g.Met))
	}
	_ = w.Flush()
}
