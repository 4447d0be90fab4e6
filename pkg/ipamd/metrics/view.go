package metrics

import (
	"cmp"
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/ipamd/warmpool"
	"vpccni/pkg/networkutils/hostnet"
)

// viewCollector reads the daemon's view once per scrape.
type viewCollector struct {
	view  func() ipamd.View
	descs []*prometheus.Desc

	eniMax, ipMax, enis, total, assigned, prefixes   *prometheus.Desc
	perCIDR, perENI                                  *prometheus.Desc
	inProgress, errors, reconciles, backend          *prometheus.Desc
	adds, noAddress, forcedENIs, forcedIPs           *prometheus.Desc
	byState, unplaced, waiting, oldest, ready        *prometheus.Desc
	phases, refused, addsRefused, undone, unverified *prometheus.Desc
	podENI, utils, repairs, repairsOf                *prometheus.Desc
}

func newViewCollector(view func() ipamd.View) *viewCollector {
	c := &viewCollector{view: view}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		d := prometheus.NewDesc(name, help, labels, nil)
		c.descs = append(c.descs, d)
		return d
	}
	// Names, types and labels that dashboards know.
	c.eniMax = desc("awscni_eni_max", "ENIs that can be attached for pods")
	c.ipMax = desc("awscni_ip_max", "Addresses that these ENIs can hold for pods")
	c.enis = desc("awscni_eni_allocated", "ENIs that serve pods or are about to")
	c.total = desc("awscni_total_ip_addresses", "Addresses held for pods")
	c.assigned = desc("awscni_assigned_ip_addresses", "Addresses assigned to pods")
	c.prefixes = desc("awscni_total_ipv4_prefixes", "IPv4 prefixes held for pods")
	c.perCIDR = desc("awscni_assigned_ip_per_cidr", "Addresses of a CIDR that are assigned to pods", "cidr")
	c.perENI = desc("awscni_assigned_ip_per_eni", "Addresses of an ENI that are assigned to pods", "eni")
	c.inProgress = desc("awscni_ipamd_action_inprogress", "Actions under way", "fn")
	c.errors = desc("awscni_ipamd_error_count", "Internal errors", "fn")
	c.reconciles = desc("awscni_reconcile_count", "Differences that were found and settled", "fn")
	c.backend = desc("awscni_connmark_reconcile_total", "Times that the host's network was brought in line", "result")
	c.adds = desc("awscni_add_ip_req_count", "AddNetwork requests")
	c.noAddress = desc("awscni_no_available_ip_addresses", "Requests that found no address ready")
	c.forcedENIs = desc("awscni_force_removed_enis", "ENIs that were gone although pods lived on them")
	c.forcedIPs = desc("awscni_force_removed_ips", "Addresses taken from pods; always 0")
	c.podENI = desc("awscni_pod_eni_error_count", "Errors with pods' own security groups; always 0 while there are none", "fn")
	c.utils = desc("awscni_aws_utils_error_count", "Failures to tidy up after an ENI", "fn", "error")
	// New ones.
	c.repairs = desc("awscni_host_repairs_count", "Times that the host's network was put right after somebody else changed it")
	c.repairsOf = desc("awscni_host_repairs_total", "Single things of the host's network that were put right after somebody else changed them", "kind")
	c.byState = desc("awscni_addresses", "Addresses held for pods, by what they are doing", "state")
	c.unplaced = desc("awscni_unplaced_addresses", "Addresses that pods hold on no ENI that is known")
	c.waiting = desc("awscni_waiting_adds", "AddNetwork requests that wait for an address")
	c.oldest = desc("awscni_oldest_waiting_add_seconds", "Age of the request that waits longest")
	c.ready = desc("awscni_ipamd_ready", "1 once the node serves pods")
	c.unverified = desc("awscni_ec2_unverified", "1 while the picture has not been compared with EC2 since the start")
	c.phases = desc("awscni_enis", "Managed ENIs, by phase", "phase")
	c.refused = desc("awscni_degraded", "1 while an EC2 operation is held back after a refusal", "operation", "cause")
	c.addsRefused = desc("awscni_add_refused_count", "AddNetwork requests that were refused, by code", "code")
	c.undone = desc("awscni_add_undone_count", "Addresses taken back because their reply could not be delivered")
	return c
}

// Describe lists every series' description.
func (c *viewCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
}

// Collect makes the series of one moment.
func (c *viewCollector) Collect(ch chan<- prometheus.Metric) {
	s := sink{ch}
	v := c.view()
	c.pool(s, v)
	c.work(s, v)
	c.requests(s, v)
}

// sink makes metrics of values. Labels are fixed in number by the descriptions above.
type sink struct{ ch chan<- prometheus.Metric }

func (s sink) gauge(d *prometheus.Desc, value float64, labels ...string) {
	s.ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
}

func (s sink) count(d *prometheus.Desc, value uint64, labels ...string) {
	s.ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
}

func (c *viewCollector) pool(s sink, v ipamd.View) {
	var managed, unmanaged, prefixes int
	phases := map[datastore.Phase]int{
		datastore.Discovered: 0, datastore.Wired: 0, datastore.Usable: 0, datastore.Draining: 0, datastore.Lost: 0,
	}
	for _, e := range v.ENIs {
		if !e.Managed {
			unmanaged++
			continue
		}
		managed++
		if e.Phase != "" {
			phases[e.Phase]++
		}
		s.gauge(c.perENI, float64(e.Assigned), e.ID)
		for _, b := range e.Pool {
			if !b.CIDR.IsSingleIP() {
				prefixes++
			}
			if n := assignedIn(b); n > 0 || !b.CIDR.IsSingleIP() {
				s.gauge(c.perCIDR, float64(n), b.CIDR.String())
			}
		}
	}
	limit := v.Limits.ENIs
	if v.Limits.MaxENI > 0 {
		limit = min(limit, v.Limits.MaxENI)
	}
	limit = max(limit-unmanaged, 0)
	s.gauge(c.eniMax, float64(limit))
	perENI := v.Limits.IPsPerENI
	if v.Targets.Prefixes {
		perENI *= warmpool.PrefixSize
	}
	s.gauge(c.ipMax, float64(limit*perENI))
	s.gauge(c.enis, float64(managed))
	s.gauge(c.total, float64(v.Totals.Total))
	s.gauge(c.assigned, float64(v.Totals.Assigned))
	s.gauge(c.prefixes, float64(prefixes))
	for phase, n := range phases {
		s.gauge(c.phases, float64(n), string(phase))
	}
	for state, n := range map[datastore.AddressState]int{
		datastore.StateAssigned: v.Totals.Assigned, datastore.StateFree: v.Totals.Free,
		datastore.StateCooling: v.Totals.Cooling, datastore.StateQuarantined: v.Totals.Quarantined,
		datastore.StateArriving: v.Totals.Arriving, datastore.StateLeaving: v.Totals.Leaving,
	} {
		s.gauge(c.byState, float64(n), string(state))
	}
	s.gauge(c.unplaced, float64(len(v.Unplaced)))
}

func assignedIn(b datastore.Block) int {
	n := 0
	for _, a := range b.Addresses {
		if a.Holder != nil {
			n++
		}
	}
	return n
}

// actionOf sorts the daemon's actions into those that dashboards know.
var actionOf = map[string]string{
	"create": "increaseDatastorePool", "assign": "increaseDatastorePool", "protect": "increaseDatastorePool",
	"remove": "decreaseDatastorePool", "unassign": "decreaseDatastorePool",
	"link": "nodeIPPoolReconcile", "check": "nodeIPPoolReconcile",
}

func (c *viewCollector) work(s sink, v ipamd.View) {
	running := map[string]int{"nodeInit": 0, "increaseDatastorePool": 0, "decreaseDatastorePool": 0, "nodeIPPoolReconcile": 0}
	if !v.Ready {
		running["nodeInit"] = 1
	}
	for _, a := range v.InFlight {
		running[cmp.Or(actionOf[a.Kind], "nodeIPPoolReconcile")]++
	}
	for fn, n := range running {
		s.gauge(c.inProgress, float64(n), fn)
	}
	c.failures(s, v)
	s.count(c.podENI, 0, "nodeInit")
	s.count(c.podENI, 0, "tryEnableSecurityGroupsForPods")
	s.count(c.repairs, v.Counters.Repairs)
	for _, kind := range hostnet.Kinds() {
		s.count(c.repairsOf, v.Counters.RepairsOf[kind], string(kind))
	}
	s.count(c.reconciles, v.Counters.ENIsFound, "eniReconcileAdd")
	s.count(c.reconciles, v.Counters.ENIsLost+v.Counters.ENIsGone, "eniReconcileDel")
	s.count(c.reconciles, v.Counters.AddressesFound, "eniDataStorePoolReconcileAdd")
	s.count(c.reconciles, v.Counters.AddressesGone, "eniIPPoolReconcileDel")
	s.count(c.reconciles, v.Counters.Resyncs, "ec2Resync")
	s.count(c.backend, v.Counters.Applies-min(v.Counters.ApplyErrors, v.Counters.Applies), "success")
	s.count(c.backend, v.Counters.ApplyErrors, "error")
	s.count(c.forcedENIs, v.Counters.ENIsLost)
	s.count(c.forcedIPs, 0)
	s.gauge(c.ready, oneIf(v.Ready))
	s.gauge(c.unverified, oneIf(v.Verified.IsZero()))
	type refusal struct{ operation, cause string }
	held := map[refusal]bool{}
	for _, r := range v.Refusals {
		held[refusal{string(r.Op), string(r.Cause)}] = true
	}
	for r := range held {
		s.gauge(c.refused, 1, r.operation, r.cause)
	}
}

func (c *viewCollector) requests(s sink, v ipamd.View) {
	s.count(c.adds, v.Counters.Adds)
	s.count(c.noAddress, v.Counters.AddsWaited)
	s.count(c.undone, v.Counters.Undone)
	s.gauge(c.waiting, float64(v.Waiting))
	s.gauge(c.oldest, v.OldestAdd.Seconds())
	for _, code := range slices.Sorted(maps.Keys(v.Counters.AddsRefused)) {
		s.count(c.addsRefused, v.Counters.AddsRefused[code], string(code))
	}
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
