package introspect

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vpccni/pkg/config"
	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/ipamd/warmpool"
)

var update = flag.Bool("update", false, "write the golden files anew")

var now = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func view() ipamd.View {
	pod := datastore.Allocation{
		Key:     datastore.Key{NetworkName: "aws-cni", ContainerID: "secret-container", IfName: "secret-eth"},
		Meta:    datastore.Meta{Namespace: "default", Pod: "web-0"},
		Address: netip.MustParseAddr("10.0.1.23"), Time: now, ENI: "eni-0abc",
	}
	return ipamd.View{
		Time: now, Ready: true, Verified: now,
		Limits:  warmpool.Limits{InstanceType: "t3.medium", ENIs: 3, IPsPerENI: 5},
		Targets: warmpool.Targets{WarmENI: 1, MaxPods: 17},
		Totals:  datastore.Counts{Total: 18, Assigned: 1, Free: 16, Cooling: 1},
		ENIs: []ipamd.ENIView{
			{
				ID: "eni-0abc", MAC: "02:00:00:00:00:01", Table: 254, SubnetID: "subnet-1", Primary: true, Managed: true,
				Phase: datastore.Usable, Counts: datastore.Counts{Total: 2, Assigned: 1, Cooling: 1},
				Pool: []datastore.Block{
					{CIDR: netip.MustParsePrefix("10.0.1.23/32"), Addresses: []datastore.Address{
						{Address: pod.Address, State: datastore.StateAssigned, Holder: &pod}}},
					{CIDR: netip.MustParsePrefix("10.0.1.24/32"), Addresses: []datastore.Address{
						{Address: netip.MustParseAddr("10.0.1.24"), State: datastore.StateCooling, Released: now}}},
					{CIDR: netip.MustParsePrefix("10.0.1.25/32"), Addresses: []datastore.Address{
						{Address: netip.MustParseAddr("10.0.1.25"), State: datastore.StateFree}}},
				},
			},
			{
				ID: "eni-1", MAC: "02:00:00:00:00:02", Device: 1, Table: 2, SubnetID: "subnet-1", Managed: true,
				Attachment: "eni-attach-1", Phase: datastore.Discovered, NotReady: "no interface with this MAC yet",
				Counts: datastore.Counts{Total: 16, Arriving: 16},
				Pool:   []datastore.Block{{CIDR: netip.MustParsePrefix("10.0.1.32/28")}},
			},
			{ID: "eni-foreign", Device: 2},
		},
		Unplaced: []datastore.Allocation{pod},
		Waiting:  2, OldestAdd: 1500 * time.Millisecond,
		InFlight: []ipamd.ActionView{{Kind: "create", Stage: "attach", Device: 2, N: 5, Since: now, Tries: 1, Reason: "2 pods wait"}},
		Plan: warmpool.Decision{Summary: "18 held", Wake: now.Add(time.Second), Actions: []warmpool.Action{
			{Kind: warmpool.AssignIPs, ENI: "eni-1", N: 3, Reason: "one ENI's worth is to be free"}}},
		PlanTime: now,
		Refusals: []warmpool.Refusal{{Op: warmpool.OpAssign, Target: "subnet-1", Cause: warmpool.CauseExhausted, Until: now.Add(time.Minute),
			Times: 1, Detail: "InsufficientFreeAddressesInSubnet"}},
		Counters: ipamd.Counters{Adds: 3, AddsRefused: map[ipamd.Code]uint64{ipamd.CodeAtLimit: 1}},
	}
}

func handler(t *testing.T, private bool) func(path string) (int, string) {
	t.Helper()
	c, err := config.Load(func(name string) (string, bool) { return "true", name == "ENABLE_IPv4" })
	if err != nil {
		t.Fatal(err)
	}
	h := NewHandler(Options{View: view, Config: c, Private: private, Log: slog.New(slog.DiscardHandler),
		Plan: func() warmpool.Decision {
			return warmpool.Decision{Summary: "18 held, 15 free", Actions: []warmpool.Action{
				{Kind: warmpool.UnassignIPs, ENI: "eni-0abc", N: 2, Reason: "2 more than one ENI's worth are free"}}}
		},
		PluginVersion: func() string { return "v1.2.3" }})
	return func(path string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", path, nil))
		body, err := io.ReadAll(w.Body)
		if err != nil {
			t.Fatal(err)
		}
		return w.Code, string(body)
	}
}

// The golden files are the contract: upstream's shapes, which may never change, and ours, which may only grow.
func TestGoldenAnswers(t *testing.T) {
	t.Parallel()
	get := handler(t, false)
	for name, path := range map[string]string{
		"root":                      "/",
		"enis":                      "/v1/enis",
		"eni-configs":               "/v1/eni-configs",
		"networkutils-env-settings": "/v1/networkutils-env-settings",
		"ipamd-env-settings":        "/v1/ipamd-env-settings",
		"state":                     "/v1/state",
		"plan":                      "/v1/plan",
	} {
		code, body := get(path)
		if code != 200 {
			t.Errorf("%s: status %d", path, code)
		}
		var got bytes.Buffer
		if err := json.Indent(&got, []byte(body), "", "  "); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		got.WriteByte('\n')
		file := filepath.Join("testdata", name+".json")
		if *update {
			if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got.String() != string(want) {
			t.Errorf("%s:\n%s", path, &got)
		}
	}
}

func TestUnknownPathsListTheCommands(t *testing.T) {
	t.Parallel()
	get := handler(t, false)
	for _, path := range []string{"/v1/pods", "/v2", "/v1/enis/x"} {
		if code, body := get(path); code != 200 || !strings.Contains(body, `"AvailableCommands":["/v1/config"`) {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
}

func TestKeysOfSandboxesAreForRootOnly(t *testing.T) {
	t.Parallel()
	for path := range map[string]bool{"/v1/enis": true, "/v1/state": true, "/v1/plan": false} {
		if _, body := handler(t, false)(path); strings.Contains(body, "secret") {
			t.Errorf("%s tells everybody: %s", path, body)
		}
	}
	for _, path := range []string{"/v1/enis", "/v1/state"} {
		if _, body := handler(t, true)(path); !strings.Contains(body, "secret-container") || !strings.Contains(body, "secret-eth") {
			t.Errorf("%s keeps keys from root: %s", path, body)
		}
	}
	if Private("127.0.0.1:61679") || !Private("unix:/run/x") {
		t.Error("what is private")
	}
}

func TestConfigNamesOrigins(t *testing.T) {
	t.Parallel()
	_, body := handler(t, false)("/v1/config")
	if !strings.Contains(body, `{"name":"ENABLE_IPv4","value":"true","origin":"env"}`) {
		t.Errorf("%s", body)
	}
}
