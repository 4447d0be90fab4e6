package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"vpccni/lab/probe"
)

const (
	// atOnce is how many checks of a lab run at the same time.
	atOnce = 8
	// setUpTimeout bounds one lab with all its checks.
	setUpTimeout = 6 * time.Minute
	// A lost packet must show, so nothing is asked twice: TCP repeats by itself, UDP does not. An answer takes less than a
	// millisecond, and much longer on a machine that has too much to do.
	checkTimeout = 15 * time.Second
)

// The results of a cell.
const (
	ok     = "ok"
	failed = "FAILED"
	cannot = "cannot run"
)

// outcome is a cell that has been run, or has not.
type outcome struct {
	SetUp  string `json:"setUp"`
	Path   string `json:"path"`
	Name   string `json:"name"`
	Result string `json:"result"`
	// Detail says what was seen, or why the cell cannot run.
	Detail string `json:"detail"`
}

// Names of the cells that concern a whole set-up.
const wholePath = "the lab"

// runSetUp builds a lab, runs all its cells and takes it down.
func runSetUp(ctx context.Context, s setUp, binDir string, explain func(string)) []outcome {
	ctx, cancel := context.WithTimeoutCause(ctx, setUpTimeout, fmt.Errorf("the set-up took longer than %s", setUpTimeout))
	defer cancel()
	whole := func(name, detail string, err error) outcome {
		o := outcome{s.Name, wholePath, name, ok, detail}
		if err != nil {
			o.Result, o.Detail = failed, err.Error()
		}
		return o
	}
	started := time.Now()
	b, err := build(ctx, s, binDir)
	if err != nil {
		return []outcome{whole("starts", "", err)}
	}
	defer b.close()
	list := []outcome{whole("starts", fmt.Sprintf("%.1f s", time.Since(started).Seconds()), nil)}
	// What did not find its Service before kube-proxy was ready went to the internet.
	if err := b.cluster.Fabric().ResetDrops(); err != nil {
		return append(list, whole("fabric drops", "", err))
	}
	if s.Proxy != proxyNone {
		detail, err := b.checkBackend(ctx)
		list = append(list, whole("kube-proxy's rules are where they are meant to be", detail, err))
	}
	list = append(list, b.run(ctx, cells(b.world, s))...)
	detail, err := b.checkDrops()
	list = append(list, whole("fabric drops", detail, err))
	o := whole("marks of another program survive", "", nil)
	if s.Marks == marksNone {
		o.Result, o.Detail = cannot, "no marks in use in this set-up"
	} else if o.Detail, err = b.checkMarks(ctx); err != nil {
		o.Result, o.Detail = failed, err.Error()
	}
	list = append(list, o)
	if count(list, failed) > 0 {
		explain(b.explain(ctx))
	}
	return list
}

// run runs cells, several at once, and returns their outcomes in their order.
func (b *bed) run(ctx context.Context, list []cell) []outcome {
	outcomes := make([]outcome, len(list))
	var group errgroup.Group
	group.SetLimit(atOnce)
	for i, c := range list {
		outcomes[i] = outcome{b.setUp.Name, c.Path, c.Name, cannot, c.cannot}
		if c.cannot != "" {
			continue
		}
		group.Go(func() error {
			detail, err := b.check(ctx, c)
			outcomes[i].Result, outcomes[i].Detail = ok, detail
			if err != nil {
				outcomes[i].Result, outcomes[i].Detail = failed, err.Error()
			}
			return nil
		})
	}
	_ = group.Wait()
	return outcomes
}

// check asks over UDP and TCP, once each, and wants the right server to answer and to have seen the right source.
func (b *bed) check(ctx context.Context, c cell) (string, error) {
	do := b.do[c.from.name]
	opts := []probe.Option{probe.Timeout(checkTimeout)}
	if c.bind.IsValid() {
		opts = append(opts, probe.From(c.bind))
	}
	var errs []error
	udp, err := probe.UDP(ctx, do, c.to, 512, opts...)
	if err == nil {
		err = c.judge(udp)
	}
	if err != nil {
		errs = append(errs, fmt.Errorf("udp: %w", err))
	}
	tcp, err := probe.TCP(ctx, do, c.to, 1024, opts...)
	if err == nil {
		err = c.judge(tcp)
	}
	if err != nil {
		errs = append(errs, fmt.Errorf("tcp: %w", err))
	}
	return "seen as " + c.source.String(), errors.Join(errs...)
}

func (c cell) judge(a probe.Answer) error {
	if a.Server != c.server {
		return fmt.Errorf("%s answered instead of %s", a.Server, c.server)
	}
	if a.Source != c.source {
		return fmt.Errorf("%s saw %s, want %s", a.Server, a.Source, c.source)
	}
	return nil
}

// checkDrops says what the fabric dropped: nothing, if every packet had a source and a destination of this VPC.
func (b *bed) checkDrops() (string, error) {
	drops, err := b.cluster.Fabric().Drops()
	if err != nil {
		return "", err
	}
	var list []string
	for _, d := range drops {
		list = append(list, fmt.Sprintf("%d packets %s → %s sent by %s %s: %s", d.Packets, d.Source, d.Destination, d.Instance, d.ENI, d.Cause))
	}
	if len(list) > 0 {
		return "", errors.New(strings.Join(list, "; "))
	}
	return "0", nil
}

// explain is n1's state, for whoever has to find out why a cell failed.
func (b *bed) explain(ctx context.Context) string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s\n", b.setUp)
	for _, command := range []string{"ip -br addr", "ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all",
		"nft list ruleset", "iptables-save", "ip6tables-save"} {
		out, err := run(ctx, b.n1, "", "sh", "-c", command)
		if err != nil {
			out = err.Error()
		}
		fmt.Fprintf(&text, "\n# %s\n%s", command, out)
	}
	fmt.Fprintf(&text, "\n# end of ipamd's log\n%s\n", lastLines(b.n1.IPAMDLog(), 20))
	return text.String()
}

func count(list []outcome, result string) int {
	n := 0
	for _, o := range list {
		if o.Result == result {
			n++
		}
	}
	return n
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
