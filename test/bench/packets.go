package main

import (
	"context"
	"fmt"
	"io"
	"slices"

	"vpccni/test/bench/stats"
)

// Pods that are on the node while packets are measured.
var packetLevels = []int{1, 250, 1000}

// The layouts of a node's rules: the floor, ours by mode of addressing, and one rule for each pod as the predecessor has.
const (
	layoutPlain     = "plain routing"
	layoutSecondary = "secondary IPs"
	layoutPrefixes  = "prefixes"
	layoutV6        = "IPv6 prefixes"
	layoutPerPod    = "rules per pod"
)

var layouts = []string{layoutPlain, layoutSecondary, layoutPrefixes, layoutV6, layoutPerPod}

// The directions, both through the node: who sends the packet, or opens the connection.
const (
	fromPod = "pod→peer"
	toPod   = "peer→pod"
)

var directions = []string{fromPod, toPod}

// flatGoal is the most that a unit may cost with the most pods, in proportion to one pod.
const flatGoal = 1.15

// flatLayouts are those that the goal is for.
var flatLayouts = []string{layoutSecondary, layoutPrefixes, layoutV6}

type packetKey struct {
	pods                       int
	layout, measure, direction string
}

// measurePackets measures what it costs to send small packets through nodes with few and with many pods.
func measurePackets(ctx context.Context, o options) ([]packetRow, error) {
	effort := o.effort()
	var nodes [][]*packetNode // by kind, then by level
	for _, kind := range [][]string{{layoutPlain}, {layoutSecondary, layoutPrefixes}, {layoutV6}, {layoutPerPod}} {
		var byLevel []*packetNode
		for _, pods := range packetLevels {
			progress("packets: a node with %d pods, %s", pods, kind[0])
			node, err := newPacketNode(ctx, pods, kind)
			if err != nil {
				return nil, fmt.Errorf("node with %d pods, %s: %w", pods, kind[0], err)
			}
			byLevel = append(byLevel, node)
			defer node.close()
		}
		nodes = append(nodes, byLevel)
	}
	runs := map[packetKey][]float64{}
	// A node's first round only warms it up.
	for round := range effort.packetRounds + 1 {
		progress("packets: round %d of %d", round, effort.packetRounds)
		for _, byLevel := range nodes {
			for _, layout := range byLevel[0].layouts {
				if err := measureLayout(ctx, byLevel, layout, effort, func(key packetKey, cost float64) {
					if round > 0 {
						runs[key] = append(runs[key], cost)
					}
				}); err != nil {
					return nil, err
				}
			}
		}
	}
	return packetRows(runs), nil
}

// measureLayout is one round of one layout. The levels take turns in short runs: what disturbs one disturbs its neighbours.
func measureLayout(ctx context.Context, byLevel []*packetNode, layout string, effort effort, record func(packetKey, float64)) error {
	for _, node := range byLevel {
		if err := node.use(ctx, layout); err != nil {
			return fmt.Errorf("node with %d pods, %s: %w", node.pods, layout, err)
		}
	}
	for _, measure := range measures {
		for _, direction := range directions {
			for _, node := range byLevel {
				if err := ctx.Err(); err != nil {
					return err
				}
				cost, err := node.flows[flowKey{measure, direction}].cost(effort.units[measure])
				if err != nil {
					return fmt.Errorf("node with %d pods, %s, %s %s: %w", node.pods, layout, measure, direction, err)
				}
				record(packetKey{node.pods, layout, measure, direction}, cost)
			}
		}
	}
	return nil
}

// packetRow is the cost of a unit in one layout, at each level.
type packetRow struct {
	Measure   string `json:"measure"`
	Direction string `json:"direction"`
	Layout    string `json:"layout"`
	// Pods are the levels, Cost the CPU nanoseconds of a unit at each.
	Pods []int          `json:"pods"`
	Cost []stats.Figure `json:"cpuNanoseconds"`
	// Floor is the cost with the most pods in proportion to plain routing's, absent for IPv6.
	Floor *stats.Figure `json:"ratioToPlainRouting,omitempty"`
	// Growth is the cost with the most pods in proportion to that with one pod, round by round; Met tells whether the goal
	// is, where there is one.
	Growth stats.Figure `json:"growth"`
	Goal   float64      `json:"goal,omitempty"`
	Met    bool         `json:"met"`
}

func packetRows(runs map[packetKey][]float64) []packetRow {
	most := packetLevels[len(packetLevels)-1]
	at := func(pods int, layout, measure, direction string) stats.Figure {
		return stats.Over(runs[packetKey{pods, layout, measure, direction}])
	}
	var rows []packetRow
	for _, measure := range measures {
		for _, direction := range directions {
			for _, layout := range layouts {
				row := packetRow{Measure: measure, Direction: direction, Layout: layout, Pods: packetLevels, Met: true}
				for _, pods := range packetLevels {
					row.Cost = append(row.Cost, at(pods, layout, measure, direction))
				}
				if layout != layoutV6 {
					floor := stats.Ratio(at(most, layout, measure, direction), at(most, layoutPlain, measure, direction))
					row.Floor = &floor
				}
				row.Growth = stats.Ratio(row.Cost[len(row.Cost)-1], row.Cost[0])
				if slices.Contains(flatLayouts, layout) {
					row.Goal, row.Met = flatGoal, row.Growth.Median <= flatGoal
				}
				rows = append(rows, row)
			}
		}
	}
	return rows
}

func printPackets(out io.Writer, rows []packetRow, rounds int) {
	fmt.Fprintf(out, "\nPackets: ns of CPU for a UDP packet of 16 bytes, a request and its answer on a TCP connection (RR), and the same with a connection of its own (CRR).\n"+
		"Medians of %d rounds that take turns; growth: with %d pods, in proportion to one pod, round by round; ÷ plain: with %d pods\n\n",
		rounds, packetLevels[len(packetLevels)-1], packetLevels[len(packetLevels)-1])
	columns := []string{"measure", "direction", "layout"}
	for _, pods := range packetLevels {
		columns = append(columns, fmt.Sprintf("%d pods", pods))
	}
	w := table(out, append(columns, "÷ plain", "growth", "quartiles", "range", "goal", "")...)
	for _, row := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t", row.Measure, row.Direction, row.Layout)
		for _, cost := range row.Cost {
			fmt.Fprintf(w, "%.0f\t", cost.Median)
		}
		floor, goal := "", ""
		if row.Floor != nil {
			floor = fmt.Sprintf("%.2f", row.Floor.Median)
		}
		if row.Goal > 0 {
			goal = fmt.Sprintf("≤ %.2f", row.Goal)
		}
		g := row.Growth
		fmt.Fprintf(w, "%s\t%.2f\t%.2f–%.2f\t%.2f–%.2f\t%s\t%s\t\n", floor, g.Median, g.Q1, g.Q3, g.Min, g.Max, goal, verdict(row.Goal > 0, row.Met))
	}
	_ = w.Flush()
}

// verdict says whether a goal is met, where there is one.
func verdict(goal, met bool) string {
	switch {
	case !goal:
		return ""
	case met:
		return "met"
	default:
		return "NOT MET"
	}
}
