package ipamd

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"

	"vpccni/pkg/ipamd/warmpool"
)

// What is heard before the start counts once there is a start: the Node may answer before EC2 does.
func TestHeardBeforeTheStart(t *testing.T) {
	t.Parallel()
	cloud := newCloud(3, 6)
	o := testOptions(cloud, warmpool.Targets{WarmENI: 1})
	o.EC2, o.Network, o.Checkpointer = account{cloud, 0}, &host{cloud: cloud}, &disk{}
	o.Spawn = func(context.Context, time.Duration, func(context.Context)) {} // nothing is carried out
	d, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 * maxEarly {
		d.SetNode(NodeState{MaxPods: 29})
	}
	if len(d.early) != maxEarly {
		t.Errorf("%d events are kept, want %d at most", len(d.early), maxEarly)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := d.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if got := d.View().Targets.MaxPods; got != 29 {
		t.Errorf("max-pods is %d, want 29", got)
	}
}

func TestDegradedFeatures(t *testing.T) {
	t.Parallel()
	c := newController(testOptions(newCloud(3, 6), warmpool.Targets{}), nil)
	d := &Daemon{ctrl: c, clock: clockwork.NewFakeClock(), log: slog.New(slog.DiscardHandler), degraded: map[string]Degradation{}}
	d.SetDegraded("b", "away", false)
	d.SetDegraded("a", "off", true)
	d.SetDegraded("b", "still away", false)
	d.SetDegraded("c", "", false)
	got := d.View().Degraded
	if len(got) != 2 || got[0].Feature != "a" || !got[0].Chosen || got[1].Reason != "still away" {
		t.Errorf("%+v", got)
	}
	d.SetDegraded("b", "", false)
	if got := d.View().Degraded; len(got) != 1 {
		t.Errorf("%+v", got)
	}
}

// A t3.medium: 3 ENIs of 6 addresses, and what takes a place away or multiplies it.
func TestCapacity(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		maxENI   int
		prefixes bool
		foreign  int
		want     int
	}{
		"plain": {want: 17}, "MAX_ENI": {maxENI: 2, want: 12}, "MAX_ENI above the type's": {maxENI: 9, want: 17},
		"prefixes": {prefixes: true, want: 242}, "an ENI of somebody else": {foreign: 1, want: 12},
	} {
		o := testOptions(newCloud(3, 6), warmpool.Targets{Prefixes: c.prefixes})
		o.Settings.MaxENI = c.maxENI
		ctrl := newController(o, nil)
		ctrl.enis["eni-own"] = &iface{managed: true}
		for range c.foreign {
			ctrl.enis["eni-foreign"] = &iface{}
		}
		if got := ctrl.capacity(); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
