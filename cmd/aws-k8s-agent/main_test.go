package main

import (
	"testing"
	"time"

	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/datastore"
)

func TestDegraded(t *testing.T) {
	t.Parallel()
	fine := ipamd.View{Ready: true, Verified: time.Unix(1, 0), ENIs: []ipamd.ENIView{{Phase: datastore.Usable}}}
	if degraded(fine) {
		t.Error("fine, but degraded")
	}
	ill := fine
	ill.ENIs = []ipamd.ENIView{{NotReady: "no link"}}
	off := fine
	off.Degraded = []ipamd.Degradation{{Feature: ipamd.FeatureNode, Chosen: true}}
	if degraded(off) {
		t.Error("what a setting wants counts as degraded")
	}
	away := fine
	away.Degraded = []ipamd.Degradation{{Feature: ipamd.FeatureNode}}
	for name, v := range map[string]ipamd.View{"not ready": {Verified: fine.Verified}, "EC2 never answered": {Ready: true}, "an ENI": ill, "a feature": away} {
		if !degraded(v) {
			t.Errorf("%s: not degraded", name)
		}
	}
}

func TestUsage(t *testing.T) {
	for args, want := range map[string]int{"-version": exitOK, "-no-such-flag": exitUsage, "argument": exitUsage} {
		if code := run([]string{args}, time.Now()); code != want {
			t.Errorf("%s: exit code %d, want %d", args, code, want)
		}
	}
	// Neither family is enabled.
	t.Setenv("ENABLE_IPv4", "false")
	t.Setenv("ENABLE_IPv6", "false")
	if code := run(nil, time.Now()); code != exitUsage {
		t.Errorf("contradictory environment: exit code %d", code)
	}
}
