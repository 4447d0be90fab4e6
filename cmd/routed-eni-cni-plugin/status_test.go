package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"vpccni/cmd/routed-eni-cni-plugin/ipamdtest"
	"vpccni/pkg/heartbeat"
	"vpccni/pkg/networkutils/names"
)

func TestStatus(t *testing.T) {
	n := newNode(t, ipamdtest.Config{})
	s := n.sandbox("", "")
	s.version = "1.1.0"
	beat := func(ago time.Duration) {
		t.Helper()
		uptime, err := heartbeat.Uptime()
		if err == nil {
			err = heartbeat.File(names.HeartbeatFile).Beat(uptime - ago)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = errors.Join(os.Remove(names.HeartbeatFile), os.Remove(names.CheckpointFile)) })

	// Without a heartbeat: ipamd is another version.
	n.mustRun("STATUS", s)
	n.ipamd.Configure(func(c *ipamdtest.Config) { c.Refusal.Code = "AtLimit" })
	n.mustRun("STATUS", s)
	n.ipamd.Stop()
	if code, message := n.mustFail("STATUS", s); code != 50 {
		t.Errorf("before ipamd's first start: %d %s", code, message)
	}
	if err := os.WriteFile(names.CheckpointFile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.mustRun("STATUS", s)

	// With one: pods wait for an ipamd that restarts, so the node stays ready.
	beat(100 * time.Second)
	n.mustRun("STATUS", s)
	beat(130 * time.Second)
	if code, message := n.mustFail("STATUS", s); code != 50 || message != "ipamd was last seen 2m10s ago" {
		t.Errorf("long after ipamd's end: %d %s", code, message)
	}
	n.startIPAMD(ipamdtest.Config{})
	n.mustRun("STATUS", s) // it has not written one yet, but it answers
}

func TestVersion(t *testing.T) {
	n := newNode(t, ipamdtest.Config{})
	s := n.sandbox("", "")
	var versions struct {
		CNIVersion        string   `json:"cniVersion"`
		SupportedVersions []string `json:"supportedVersions"`
	}
	if err := json.Unmarshal([]byte(n.mustRun("VERSION", s)), &versions); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(versions.SupportedVersions); versions.CNIVersion != "1.1.0" || got != "[0.1.0 0.2.0 0.3.0 0.3.1 0.4.0 1.0.0 1.1.0]" {
		t.Errorf("%s %s", versions.CNIVersion, got)
	}
}
