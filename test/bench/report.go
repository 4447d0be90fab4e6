package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"vpccni/test/bench/stats"

	"golang.org/x/sys/unix"
)

// report is everything that was measured; the JSON file has it as it is.
type report struct {
	Started     time.Time   `json:"started"`
	Seconds     int         `json:"seconds"`
	Rounds      int         `json:"rounds"`
	Machine     machine     `json:"machine"`
	PluginBytes int64       `json:"pluginBytes"`
	Plugin      []pluginRow `json:"plugin,omitempty"`
	IPAMD       []daemonRow `json:"ipamd,omitempty"`
	Packets     []packetRow `json:"packets,omitempty"`
}

type machine struct {
	CPUs   int    `json:"cpus"`
	CPU    string `json:"cpu"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
	// Load is the load average of the last minute before the benchmark: what else the machine did.
	Load string `json:"load"`
}

func describeMachine() machine {
	m := machine{CPUs: runtime.NumCPU(), Go: runtime.Version()}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		m.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load, _, _ = strings.Cut(string(text), " ")
	}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	return m
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

func (r report) failures() int {
	n := 0
	for _, row := range r.Plugin {
		n += row.Failures
	}
	return n
}

// print writes the tables for people.
func (r report) print(out io.Writer) {
	fmt.Fprintf(out, "%s: %d × %s, Linux %s, %s, load %s; plugin of %.1f MB; %d s\n",
		r.Started.Format(time.DateOnly), r.Machine.CPUs, r.Machine.CPU, r.Machine.Kernel, r.Machine.Go, r.Machine.Load,
		float64(r.PluginBytes)/1e6, r.Seconds)
	if len(r.Plugin) > 0 {
		fmt.Fprintf(out, "\nPlugin: milliseconds per execution; medians of %d rounds [smallest–largest]; floor: exec of an empty Go program\n\n", r.Rounds)
		w := table(out, "at once", "operation", "pods", "wall p50", "p99", "CPU p50", "p99", "CPU, rounds", "floor", "× floor", "per s", "failed")
		for _, row := range r.Plugin {
			fmt.Fprintf(w, "%d\t%s\t%d\t%.1f\t%.1f\t%.2f\t%.2f\t%s\t%.2f\t%s\t%.0f\t%d of %d\t\n",
				row.Parallel, row.Operation, row.Pods, row.WallP50, row.WallP99, row.CPUP50, row.CPUP99,
				figure(row.CPU, 2), row.Floor.Median, figure(row.Ratio, 1), row.PerSecond.Median, row.Failures, row.Executions)
		}
		_ = w.Flush()
	}
	if len(r.IPAMD) > 0 {
		fmt.Fprintf(out, "\nipamd on a %s: resident memory in MB, thousandths of a CPU while idle, and milliseconds from its start to the first address; an EC2 call takes %s\n\n",
			daemonType, ec2RoundTrip)
		w := table(out, "pods", "RSS", "RssAnon", "RssFile", "peak", "idle mCPU", "over s", "first address", "journal")
		for _, row := range r.IPAMD {
			fmt.Fprintf(w, "%d\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.0f\t%s\t%t\t\n",
				row.Pods, row.RSS, row.RSSAnon, row.RSSFile, row.RSSPeak, row.IdleCPU, row.IdleSeconds, figure(row.Start, 0), row.Journal)
		}
		_ = w.Flush()
	}
	if len(r.Packets) > 0 {
		fmt.Fprintf(out, "\nPackets: ns of CPU for a 16-byte UDP packet, sent, forwarded and received; medians of %d rounds [smallest–largest]; floor: plain routing\n\n", r.Rounds)
		w := table(out, "direction", "mode", "pods", "ns per packet", "floor", "× floor", "× one pod")
		for _, row := range r.Packets {
			fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%.0f\t%s\t%s\t\n", row.Direction, row.Mode, row.Pods,
				figure(row.NsPerPkt, 0), row.Floor.Median, figure(row.Ratio, 2), figure(row.Growth, 2))
		}
		_ = w.Flush()
	}
}

func table(out io.Writer, columns ...string) *tabwriter.Writer {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, strings.Join(columns, "\t")+"\t")
	return w
}

func figure(f stats.Figure, digits int) string {
	return fmt.Sprintf("%.*f [%.*f–%.*f]", digits, f.Median, digits, f.Min, digits, f.Max)
}
