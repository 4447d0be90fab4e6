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
	Started      time.Time     `json:"started"`
	Seconds      int           `json:"seconds"`
	Rounds       int           `json:"rounds"`
	PacketRounds int           `json:"packetRounds"`
	Machine      machine       `json:"machine"`
	PluginBytes  int64         `json:"pluginBytes"`
	Plugin       *pluginReport `json:"plugin,omitempty"`
	IPAMD        []daemonRow   `json:"ipamd,omitempty"`
	Packets      []packetRow   `json:"packets,omitempty"`
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

// failures are the executions of the plugin that failed.
func (r report) failures() int {
	if r.Plugin == nil {
		return 0
	}
	n := 0
	for _, row := range r.Plugin.Rows {
		n += row.Failures
	}
	for _, storm := range r.Plugin.Storms {
		n += storm.Failures
	}
	return n
}

// print writes the tables for people.
func (r report) print(out io.Writer) {
	fmt.Fprintf(out, "%s: %d × %s, Linux %s, %s, load %s; plugin of %.1f MB; %d s\n",
		r.Started.Format(time.DateOnly), r.Machine.CPUs, r.Machine.CPU, r.Machine.Kernel, r.Machine.Go, r.Machine.Load,
		float64(r.PluginBytes)/1e6, r.Seconds)
	if r.Plugin != nil {
		r.Plugin.print(out, r.Rounds)
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
		printPackets(out, r.Packets, r.PacketRounds)
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
