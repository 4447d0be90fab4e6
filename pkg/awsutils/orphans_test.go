package awsutils

import (
	"fmt"
	"maps"
	"strings"
	"testing"
)

func TestDetachedENIs(t *testing.T) {
	t.Parallel()
	w := &wire{answers: []answer{ok(describeXML("", eniXML))}}
	e, _ := client(t, w)
	enis, err := e.DetachedENIs(t.Context(), "vpc-1", map[string]string{TagCluster: `b*l\ue?`})
	if err != nil || len(enis) != 1 {
		t.Fatalf("%v, %v", enis, err)
	}
	const want = "Action=DescribeNetworkInterfaces\nFilter.1.Name=status\nFilter.1.Value.1=available\n" +
		"Filter.2.Name=vpc-id\nFilter.2.Value.1=vpc-1\n" +
		"Filter.3.Name=tag:cluster.k8s.amazonaws.com/name\nFilter.3.Value.1=b\\*l\\\\ue\\?\nMaxResults=1000"
	if got := w.form(0); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func instancesXML(next string, states ...string) string {
	var b strings.Builder
	b.WriteString("<DescribeInstancesResponse><reservationSet>")
	for i, state := range states {
		fmt.Fprintf(&b, "<item><instancesSet><item><instanceId>i-%s%d</instanceId><instanceState><name>%s</name></instanceState></item></instancesSet></item>", next, i, state)
	}
	return b.String() + "</reservationSet><nextToken>" + next + "</nextToken></DescribeInstancesResponse>"
}

func TestInstanceStates(t *testing.T) {
	t.Parallel()
	w := &wire{answers: []answer{ok(instancesXML("more", "running", "terminated")), ok(instancesXML("", "shutting-down"))}}
	e, _ := client(t, w)
	states, err := e.InstanceStates(t.Context(), "i-more0", "i-more1", "i-0", "i-unknown")
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"i-more0": "running", "i-more1": "terminated", "i-0": "shutting-down"}; !maps.Equal(states, want) {
		t.Errorf("got %v, want %v", states, want)
	}
	const form = "Action=DescribeInstances\nFilter.1.Name=instance-id\nFilter.1.Value.1=i-more0\nFilter.1.Value.2=i-more1\n" +
		"Filter.1.Value.3=i-0\nFilter.1.Value.4=i-unknown\nIncludeManagedResources=true"
	if got := w.form(0); got != form {
		t.Errorf("got:\n%s\nwant:\n%s", got, form)
	}
	many := make([]string, filterSize+1)
	for i := range many {
		many[i] = fmt.Sprintf("i-%d", i)
	}
	w = &wire{answers: []answer{ok(instancesXML(""))}}
	e, _ = client(t, w)
	if _, err := e.InstanceStates(t.Context(), many...); err != nil || w.sent() != 2 {
		t.Errorf("%d calls for %d instances, %v", w.sent(), len(many), err)
	}
}
