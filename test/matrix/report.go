package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// table prints every cell: a row for each path, a column for each set-up, then what did not pass and what cannot run.
func table(out io.Writer, chosen []setUp, outcomes []outcome) {
	fmt.Fprintln(out, "\nSet-ups:")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  \tpods\tkube-proxy on n1\tEXTERNALSNAT\trp_filter all\tdefault\tsrc_valid_mark\tforeign marks\tpods' rules")
	for _, s := range chosen {
		if s.IPv6 {
			fmt.Fprintf(w, "  %s\tIPv6\t%s\t-\t-\t-\t-\t%s\t%s\n", s.Name, s.Proxy, s.Marks, s.Layout)
			continue
		}
		fmt.Fprintf(w, "  %s\tIPv4\t%s\t%s\t%d\t%d\t%d\t%s\t%s\n", s.Name, s.Proxy, s.SNAT, s.RPAll, s.RPDefault, s.SrcValid, s.Marks, s.Layout)
	}
	_ = w.Flush()

	type row struct{ path, name string }
	var rows []row
	results := map[row]map[string]outcome{}
	for _, o := range outcomes {
		r := row{o.Path, o.Name}
		if results[r] == nil {
			results[r] = map[string]outcome{}
			rows = append(rows, r)
		}
		results[r][o.SetUp] = o
	}
	fmt.Fprintln(out, "\nCells (ok, FAILED, -: cannot run):")
	w = tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "PATH\tCELL")
	for _, s := range chosen {
		fmt.Fprintf(w, "\t%s", s.Name)
	}
	fmt.Fprintln(w)
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s", r.path, r.name)
		for _, s := range chosen {
			fmt.Fprintf(w, "\t%s", map[string]string{ok: "ok", failed: failed, cannot: "-"}[results[r][s.Name].Result])
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush()
	reasons(out, outcomes)
	failures(out, outcomes)
}

// reasons says why cells cannot run, each reason once.
func reasons(out io.Writer, outcomes []outcome) {
	type reason struct{ path, detail string }
	setUps := map[reason][]string{}
	var list []reason
	for _, o := range outcomes {
		if o.Result != cannot {
			continue
		}
		r := reason{o.Path, o.Detail}
		if setUps[r] == nil {
			list = append(list, r)
		}
		if !slices.Contains(setUps[r], o.SetUp) {
			setUps[r] = append(setUps[r], o.SetUp)
		}
	}
	if len(list) == 0 {
		return
	}
	slices.SortStableFunc(list, func(a, b reason) int { return cmp.Compare(a.detail, b.detail) })
	fmt.Fprintln(out, "\nCannot run:")
	for _, r := range list {
		fmt.Fprintf(out, "  %s: %s (%s)\n", r.path, r.detail, strings.Join(setUps[r], " "))
	}
}

func failures(out io.Writer, outcomes []outcome) {
	if count(outcomes, failed) == 0 {
		return
	}
	fmt.Fprintln(out, "\nFailed:")
	for _, o := range outcomes {
		if o.Result == failed {
			fmt.Fprintf(out, "  %s %s, %s: %s\n", o.SetUp, o.Path, o.Name, strings.ReplaceAll(o.Detail, "\n", "; "))
		}
	}
}
