package metrics

import (
	"context"
	"errors"
	"flag"
	"maps"
	"net/http/httptest"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/ipamd/warmpool"
)

var update = flag.Bool("update", false, "write the golden file anew")

func view() ipamd.View {
	holder := &datastore.Allocation{}
	return ipamd.View{
		Ready:  true,
		Limits: warmpool.Limits{ENIs: 3, IPsPerENI: 5},
		Totals: datastore.Counts{Total: 21, Assigned: 2, Free: 18, Cooling: 1},
		ENIs: []ipamd.ENIView{
			{ID: "eni-1", Managed: true, Phase: datastore.Usable, Counts: datastore.Counts{Total: 5, Assigned: 1}, Pool: []datastore.Block{
				{CIDR: netip.MustParsePrefix("10.0.1.23/32"), Addresses: []datastore.Address{{State: datastore.StateAssigned, Holder: holder}}},
				{CIDR: netip.MustParsePrefix("10.0.1.24/32"), Addresses: []datastore.Address{{State: datastore.StateFree}}},
			}},
			{ID: "eni-2", Managed: true, Phase: datastore.Usable, Counts: datastore.Counts{Total: 16, Assigned: 1}, Pool: []datastore.Block{
				{CIDR: netip.MustParsePrefix("10.0.1.32/28"), Addresses: []datastore.Address{{State: datastore.StateAssigned, Holder: holder}}},
			}},
			{ID: "eni-foreign"},
		},
		Waiting: 2, OldestAdd: 1500 * time.Millisecond,
		InFlight: []ipamd.ActionView{{Kind: "create"}, {Kind: "assign"}, {Kind: "unassign"}},
		Refusals: []warmpool.Refusal{
			{Op: warmpool.OpAssign, Cause: warmpool.CauseDenied, Target: "subnet-1"},
			{Op: warmpool.OpAssign, Cause: warmpool.CauseDenied, Target: "subnet-2"},
		},
		Counters: ipamd.Counters{Adds: 7, AddsWaited: 3, Applies: 9, ApplyErrors: 2, ENIsLost: 1,
			AddsRefused: map[ipamd.Code]uint64{ipamd.CodeAtLimit: 1}, Repairs: 4, NotReady: 5,
			Failures: map[ipamd.Failure]uint64{{Call: "DeleteENI", Purpose: "undo", Class: "Throttled"}: 6,
				{Call: "DeleteENI", Purpose: "remove", Class: "Denied"}: 7, {Call: "AssignIPs", Purpose: "assign", Class: "Denied"}: 8,
				{Call: "DescribeENIs", Purpose: "observe", Class: "Timeout"}: 9}},
	}
}

func filled() *Metrics {
	m := New("v1.2.3", view)
	m.Add("OK", 3*time.Millisecond, 2*time.Millisecond, time.Millisecond)
	m.Add("AtLimit", time.Millisecond, 0, 0)
	m.Del("PodDeleted", "OK", time.Millisecond, time.Millisecond)
	m.Del("anything the client likes", "UnknownPod", time.Millisecond, 0)
	m.Orphans(OrphanOfCluster, OrphanFound, 1)
	m.AWS(awsutils.Call{Service: "EC2", Operation: "CreateNetworkInterface", Status: 200, Duration: 20 * time.Millisecond,
		Attempts: 3, Throttled: 2, Waited: 250 * time.Millisecond})
	m.AWS(awsutils.Call{Service: "EC2", Operation: "CreateNetworkInterface", Status: 403, Code: "UnauthorizedOperation", Err: errors.New("no")})
	m.AWS(awsutils.Call{Service: "EC2", Operation: "AttachNetworkInterface", Err: context.DeadlineExceeded})
	m.AWS(awsutils.Call{Service: "ec2imds", Operation: "GetMetadata", Status: 404, Err: errors.New("not found")})
	m.Started(time.Second, time.Second/2)
	return m
}

// page is a scrape: the types of the metrics, and the values of their series as they are written.
type page struct {
	types  map[string]string
	helps  map[string]string
	values map[string]string
}

func scrape(t *testing.T, m *Metrics) page {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", Path, nil))
	if w.Code != 200 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	p := page{map[string]string{}, map[string]string{}, map[string]string{}}
	for line := range strings.Lines(w.Body.String()) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, kind, _ := strings.Cut(rest, " ")
			p.types[name] = kind
		} else if rest, ok := strings.CutPrefix(line, "# HELP "); ok {
			name, help, _ := strings.Cut(rest, " ")
			p.helps[name] = help
		} else if at := strings.LastIndex(line, " "); !strings.HasPrefix(line, "#") && at > 0 {
			p.values[line[:at]] = line[at+1:]
		}
	}
	return p
}

var labelName = regexp.MustCompile(`([a-z_]+)="`)

// labels of a metric, from any of its series.
func (p page) labels(name string) string {
	suffix := map[string]string{"histogram": "_count", "summary": "_count"}[p.types[name]]
	for series := range p.values {
		if base, rest, _ := strings.Cut(series, "{"); base == name+suffix {
			var labels []string
			for _, m := range labelName.FindAllStringSubmatch(rest, -1) {
				labels = append(labels, m[1])
			}
			return strings.Join(labels, ",")
		}
	}
	return "no series"
}

// Names, types and labels are what dashboards and alerts are written for.
func TestGoldenNames(t *testing.T) {
	t.Parallel()
	var lines []string
	p := scrape(t, filled())
	for name, kind := range p.types {
		if strings.HasPrefix(name, "awscni_") {
			lines = append(lines, name+" "+kind+" {"+p.labels(name)+"} "+p.helps[name])
		}
	}
	slices.Sort(lines)
	got := strings.Join(lines, "\n") + "\n"
	const file = "testdata/names.txt"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got:\n%s", got)
	}
}

// TestUpstreamsMetrics: every metric of upstream's is there, of its type and with its labels; and of a label with a
// closed vocabulary those values that dashboards name.
func TestUpstreamsMetrics(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/upstream.txt")
	if err != nil {
		t.Fatal(err)
	}
	p := scrape(t, filled())
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] == "#" {
			continue
		}
		name, kind, labels := words[0], words[1], words[2]
		if p.types[name] != kind || "{"+p.labels(name)+"}" != labels {
			t.Errorf("%s is %s {%s}, want %s %s", name, p.types[name], p.labels(name), kind, labels)
		}
		for _, value := range words[3:] {
			if !slices.ContainsFunc(slices.Collect(maps.Keys(p.values)), func(series string) bool {
				return strings.HasPrefix(series, name+"{") && strings.Contains(series, `="`+value+`"`)
			}) {
				t.Errorf("%s has no series %q", name, value)
			}
		}
	}
}

func TestPrefixesHoldSixteen(t *testing.T) {
	t.Parallel()
	m := New("v1.2.3", func() ipamd.View {
		return ipamd.View{Limits: warmpool.Limits{ENIs: 3, IPsPerENI: 5}, Targets: warmpool.Targets{Prefixes: true}}
	})
	if got := scrape(t, m).values[`awscni_ip_max`]; got != "240" {
		t.Errorf("awscni_ip_max is %s for 3 ENIs x 5 prefixes of 16", got)
	}
}

func TestValues(t *testing.T) {
	t.Parallel()
	p := scrape(t, filled())
	for series, want := range map[string]string{
		`awscni_build_info{goversion="` + runtime.Version() + `",version="v1.2.3"}`: "1",
		`awscni_eni_max`:                                                                                        "2", // one of three slots is somebody else's
		`awscni_ip_max`:                                                                                         "10",
		`awscni_eni_allocated`:                                                                                  "2",
		`awscni_total_ip_addresses`:                                                                             "21",
		`awscni_assigned_ip_addresses`:                                                                          "2",
		`awscni_total_ipv4_prefixes`:                                                                            "1",
		`awscni_assigned_ip_per_cidr{cidr="10.0.1.23/32"}`:                                                      "1",
		`awscni_assigned_ip_per_cidr{cidr="10.0.1.24/32"}`:                                                      "", // free
		`awscni_assigned_ip_per_cidr{cidr="10.0.1.32/28"}`:                                                      "1",
		`awscni_assigned_ip_per_eni{eni="eni-1"}`:                                                               "1",
		`awscni_ipamd_action_inprogress{fn="increaseDatastorePool"}`:                                            "2",
		`awscni_ipamd_action_inprogress{fn="nodeInit"}`:                                                         "0",
		`awscni_add_ip_req_count`:                                                                               "7",
		`awscni_del_ip_req_count{reason="PodDeleted"}`:                                                          "1",
		`awscni_del_ip_req_count{reason="SetupNSFailed"}`:                                                       "0",
		`awscni_del_ip_req_count{reason="other"}`:                                                               "1",
		`awscni_no_available_ip_addresses`:                                                                      "3",
		`awscni_force_removed_enis`:                                                                             "1",
		`awscni_connmark_reconcile_total{result="success"}`:                                                     "7",
		`awscni_connmark_reconcile_total{result="error"}`:                                                       "2",
		`awscni_addresses{state="free"}`:                                                                        "18",
		`awscni_enis{phase="usable"}`:                                                                           "2",
		`awscni_waiting_adds`:                                                                                   "2",
		`awscni_oldest_waiting_add_seconds`:                                                                     "1.5",
		`awscni_degraded{cause="denied",operation="assign"}`:                                                    "1",
		`awscni_add_refused_count{code="AtLimit"}`:                                                              "1",
		`awscni_ec2api_req_count{fn="CreateNetworkInterface"}`:                                                  "2",
		`awscni_ec2api_error_count{fn="CreateNetworkInterface"}`:                                                "1",
		`awscni_aws_api_error_count{api="CreateNetworkInterface",error="UnauthorizedOperation"}`:                "1",
		`awscni_aws_api_error_count{api="GetMetadata",error="NotFound"}`:                                        "", // how IMDS says no
		`awscni_aws_api_latency_ms_sum{api="CreateNetworkInterface",error="false",status="200"}`:                "20",
		`awscni_add_duration_seconds_sum{outcome="OK",phase="total"}`:                                           "0.003",
		`awscni_add_duration_seconds_sum{outcome="OK",phase="wait"}`:                                            "0.002",
		`awscni_add_duration_seconds_sum{outcome="OK",phase="commit"}`:                                          "0.001",
		`awscni_add_duration_seconds_count{outcome="AtLimit",phase="total"}`:                                    "1",
		`awscni_add_duration_seconds_count{outcome="AtLimit",phase="wait"}`:                                     "",
		`awscni_del_duration_seconds_count{outcome="OK",phase="commit"}`:                                        "1",
		`awscni_ec2api_attempt_count{fn="CreateNetworkInterface"}`:                                              "3",
		`awscni_ec2api_throttle_count{fn="CreateNetworkInterface"}`:                                             "2",
		`awscni_ec2api_wait_seconds_total{fn="CreateNetworkInterface"}`:                                         "0.25",
		`awscni_orphan_enis{outcome="found",scope="cluster"}`:                                                   "1",
		`awscni_orphan_enis{outcome="deleted",scope="cluster"}`:                                                 "0",
		`awscni_aws_utils_error_count{error="Throttled",fn="AllocENIDeleteErr"}`:                                "6",
		`awscni_aws_utils_error_count{error="Denied",fn="FreeENIDeleteErr"}`:                                    "7",
		`awscni_ipamd_error_count{fn="increaseIPPoolAllocIPAddressesFailed"}`:                                   "8",
		`awscni_ipamd_error_count{fn="decreaseIPPoolFreeENIFailed"}`:                                            "13",
		`awscni_ipamd_error_count{fn="increaseIPPoolAllocENI"}`:                                                 "0",
		`awscni_ipamd_error_count{fn="increaseIPPoolsetupENIFailed"}`:                                           "5",
		`awscni_ipamd_error_count{fn="reconcileFailedGetENIs"}`:                                                 "9",
		`awscni_pod_eni_error_count{fn="nodeInit"}`:                                                             "0",
		`awscni_host_repairs_count`:                                                                             "4",
		`awscni_ipamd_startup_duration_seconds_count{failure_reason="",success="true",with_api_server="false"}`: "1",
		`awscni_ec2_unverified`:                                                                                 "1",
	} {
		if got := p.values[series]; got != want {
			t.Errorf("%s is %q, want %q", series, got, want)
		}
	}
	for _, name := range []string{"go_goroutines", "process_resident_memory_bytes"} {
		if p.values[name] == "" {
			t.Errorf("no %s", name)
		}
	}
}

// Series go with what they are about.
func TestSeriesOfWhatIsGoneAreGone(t *testing.T) {
	t.Parallel()
	v := view()
	m := New("v", func() ipamd.View { return v })
	series := []string{`awscni_assigned_ip_per_eni{eni="eni-2"}`, `awscni_assigned_ip_per_cidr{cidr="10.0.1.32/28"}`}
	before := scrape(t, m)
	v.ENIs = v.ENIs[:1]
	after := scrape(t, m)
	for _, s := range series {
		if before.values[s] == "" || after.values[s] != "" {
			t.Errorf("%s: %q, then %q", s, before.values[s], after.values[s])
		}
	}
}
