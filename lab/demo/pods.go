package demo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"vpccni/lab/cluster"
	"vpccni/lab/ec2"
	"vpccni/lab/probe"
)

const namespace = "demo"

// Figures of a t3.medium: 3 ENIs of 6 addresses, the first of which is the ENI's own.
const (
	enis    = 3
	perENI  = 6 - 1
	maxPods = enis * perENI
)

// podsElsewhere is the number of pods on the nodes that are not filled up: a whole ENI's, and two on the next one.
const podsElsewhere = perENI + 2

// grow fills the first node up, one pod after the other.
func (s *scene) grow(ctx context.Context) error {
	s.step("n1 grows from 1 to %d pods", maxPods)
	s.expectENIs("n1", 1)
	var slowest time.Duration
	for i := 1; i <= maxPods; i++ {
		took, err := s.addPod(ctx, ctx, "n1", i)
		if err != nil {
			s.add("scale", fmt.Sprintf("pod %d of %d on n1", i, maxPods), "", err)
			return err
		}
		slowest = max(slowest, took)
		if i == 1 || i == perENI+1 || i == 2*perENI+1 {
			s.note("%2d pods: %d ENIs, this ADD took %s", i, len(s.attached("n1")), took.Round(time.Millisecond))
		}
	}
	s.add("scale", fmt.Sprintf("1 → %d pods on n1", maxPods), fmt.Sprintf("slowest ADD %s", slowest.Round(time.Millisecond)), nil)
	s.expectENIs("n1", enis)
	s.calls("n1")
	return nil
}

// calls tells what the node asked of EC2 until all its pods ran.
func (s *scene) calls(node string) {
	n, err := s.cluster.Node(node)
	if err != nil {
		s.add("ec2", "calls", "", err)
		return
	}
	byAction := map[string]int{}
	total := 0
	for _, r := range s.cluster.Cloud().Requests() {
		if r.Caller == n.InstanceID {
			byAction[r.Action]++
			total++
		}
	}
	var parts []string
	for _, action := range slices.Sorted(maps.Keys(byAction)) {
		parts = append(parts, fmt.Sprintf("%d %s", byAction[action], action))
	}
	const most = 11
	if total > most {
		err = fmt.Errorf("more than %d", most)
	}
	s.add("ec2", fmt.Sprintf("calls of %s, start to %d running pods", node, maxPods), fmt.Sprintf("%d: %s", total, strings.Join(parts, ", ")), err)
}

// refuse asks for one pod more than the instance can hold.
func (s *scene) refuse(ctx context.Context) error {
	s.step("Pod %d on n1 is one too many: a t3.medium gives pods %d ENIs x (6-1) addresses", maxPods+1, enis)
	started := time.Now()
	_, err := s.cluster.PodAdd(ctx, "n1", namespace, "one-too-many")
	took := time.Since(started).Round(time.Millisecond)
	name := fmt.Sprintf("pod %d is refused, with the limit", maxPods+1)
	switch {
	case err == nil:
		s.add("scale", name, "", errors.New("it was not refused"))
	case !strings.Contains(err.Error(), "3 ENIs x (6-1) addresses"):
		s.add("scale", name, took.String(), fmt.Errorf("the reason does not name the limit: %w", err))
	default:
		s.note("%v", err)
		s.add("scale", name, fmt.Sprintf("after %s", took), nil)
	}
	return nil
}

// populate puts pods on the other nodes, all at once, so that both ENIs of each have at least two.
func (s *scene) populate(ctx context.Context) error {
	s.step("%d pods on n2 and on n3, all at once", podsElsewhere)
	started := time.Now()
	group, groupCtx := errgroup.WithContext(ctx)
	for _, node := range []string{"n2", "n3"} {
		for i := range podsElsewhere {
			group.Go(func() error {
				_, err := s.addPod(ctx, groupCtx, node, i+1)
				return err
			})
		}
	}
	err := group.Wait()
	s.add("scale", fmt.Sprintf("%d pods at once on two nodes", 2*podsElsewhere), time.Since(started).Round(time.Millisecond).String(), err)
	return err
}

// shrink deletes everything and waits until the nodes hold what the warm target says.
func (s *scene) shrink(ctx context.Context) error {
	s.step("All pods are deleted; ENIs shrink to the warm target (WARM_ENI_TARGET=1: one ENI's worth of free addresses)")
	started := time.Now()
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	pods := s.cluster.Pods("")
	for _, p := range pods {
		group.Go(func() error { return s.cluster.PodDel(groupCtx, p.Node, p.Namespace, p.Name) })
	}
	err := group.Wait()
	s.add("scale", fmt.Sprintf("%d pods deleted", len(pods)), time.Since(started).Round(time.Millisecond).String(), err)
	if err != nil {
		return err
	}
	for _, n := range s.cluster.Nodes() {
		s.expectENIs(n.Name, 1)
		left := 0
		for _, e := range s.cluster.Cloud().ENIsOf(n.InstanceID) {
			left += len(e.Secondary)
		}
		var err error
		if left != perENI {
			err = fmt.Errorf("want %d", perENI)
		}
		s.add("scale", "addresses kept warm on "+n.Name, fmt.Sprint(left), err)
	}
	s.expectNoneLeft()
	return nil
}

// addPod makes a pod, as long as add lasts, and has it answer probes as long as ctx does.
func (s *scene) addPod(ctx, add context.Context, node string, i int) (time.Duration, error) {
	pod, err := s.cluster.PodAdd(add, node, namespace, fmt.Sprintf("%s-pod%02d", node, i))
	if err != nil {
		return 0, err
	}
	do := func(f func() error) error { return s.cluster.PodDo(pod.Node, pod.Namespace, pod.Name, f) }
	_, err = probe.Serve(ctx, pod.Name, do, probePort)
	return pod.Took, err
}

// patience is how long the demonstration waits for the pool to become what it should be.
const patience = 30 * time.Second

// settle asks every few milliseconds until ok, and tells how long that took.
func settle(ok func() bool) (time.Duration, bool) {
	started := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for ; !ok(); <-tick.C {
		if time.Since(started) > patience {
			return patience, false
		}
	}
	return time.Since(started), true
}

// expectENIs waits until a node has so many ENIs, no more and no less.
func (s *scene) expectENIs(node string, want int) {
	took, ok := settle(func() bool { return len(s.attached(node)) == want })
	var err error
	if !ok {
		err = fmt.Errorf("want %d", want)
	}
	s.add("scale", fmt.Sprintf("ENIs of %s: %d", node, want), fmt.Sprintf("%d after %.1f s", len(s.attached(node)), took.Seconds()), err)
}

// expectNoneLeft waits until every ENI that was detached is deleted.
func (s *scene) expectNoneLeft() {
	var left []string
	took, ok := settle(func() bool {
		left = nil
		for _, e := range s.cluster.Cloud().ENIs() {
			if e.Status == "available" {
				left = append(left, e.ID)
			}
		}
		return len(left) == 0
	})
	var err error
	if !ok {
		err = fmt.Errorf("%s are attached to nothing", strings.Join(left, ", "))
	}
	s.add("scale", "no ENI is left behind", fmt.Sprintf("%d available, after %.1f s", len(left), took.Seconds()), err)
}

// attached are a node's ENIs, however far attaching or detaching has come.
func (s *scene) attached(node string) []ec2.ENI {
	n, err := s.cluster.Node(node)
	if err != nil {
		return nil
	}
	return s.cluster.Cloud().ENIsOf(n.InstanceID)
}

// podsOn sorts a node's pods by the ENI that their address is on: the primary one's, and those of the secondary ENI
// that has most of them.
func (s *scene) podsOn(n *cluster.Node) (primary, secondary []endpoint, err error) {
	byENI := map[int][]endpoint{}
	list := s.cluster.Cloud().ENIsOf(n.InstanceID)
	for _, p := range s.cluster.Pods(n.Name) {
		at := slices.IndexFunc(list, func(e ec2.ENI) bool { return slices.Contains(e.Secondary, p.Address) })
		if at < 0 {
			return nil, nil, fmt.Errorf("address %s of pod %s is on no ENI of %s", p.Address, p.Name, n.Name)
		}
		device := list[at].Attachment.Device
		byENI[device] = append(byENI[device], endpoint{
			name: p.Name, addr: p.Address,
			do: func(f func() error) error { return s.cluster.PodDo(p.Node, p.Namespace, p.Name, f) },
		})
	}
	for _, device := range slices.Sorted(maps.Keys(byENI)) {
		if device > 0 && len(byENI[device]) > len(secondary) {
			secondary = byENI[device]
		}
	}
	if len(byENI[0]) < 2 || len(secondary) < 2 {
		return nil, nil, fmt.Errorf("%s has %d pods on its primary ENI and %d on a secondary one; 2 each are needed", n.Name, len(byENI[0]), len(secondary))
	}
	return byENI[0], secondary, nil
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
