// Package metrics serves Prometheus: the names, types and labels that the field's dashboards and alerts are written
// for, and a few of its own. What the daemon knows is read from it when somebody asks (view.go), so that no series can
// differ from the state, or outlive what it is about; what only passes by is counted here.
package metrics

import (
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd"
)

// Address is where the endpoint has always been.
const Address = ":61678"

// Path of the metrics on it.
const Path = "/metrics"

// addBuckets go from a plain ADD (below a millisecond) to one that waits for an ENI and to the plugin's deadline.
var addBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 40, 60, 90}

// delReasons are what plugins say; anything else is one series, for clients choose it.
var delReasons = []string{"PodDeleted", "SetupNSFailed"}

const otherReason = "other"

// Metrics counts and serves.
type Metrics struct {
	registry *prometheus.Registry

	dels       *prometheus.CounterVec
	addTime    *prometheus.HistogramVec
	delTime    *prometheus.HistogramVec
	calls      *prometheus.CounterVec
	callErrors *prometheus.CounterVec
	throttles  *prometheus.CounterVec
	attempts   *prometheus.CounterVec
	waits      *prometheus.CounterVec
	orphans    *prometheus.CounterVec
	apiErrors  *prometheus.CounterVec
	apiLatency *prometheus.SummaryVec
	startTime  *prometheus.HistogramVec
	initTime   *prometheus.HistogramVec
}

// New returns Metrics of a daemon of this version. They have series of their own, not the process-wide ones.
func New(version string, view func() ipamd.View) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	}
	m := &Metrics{
		registry:   prometheus.NewRegistry(),
		dels:       counter("awscni_del_ip_req_count", "DelNetwork requests, by what the plugin says is the reason", "reason"),
		addTime:    histogram("awscni_add_duration_seconds", "Time of AddNetwork requests, by part of it and by outcome", addBuckets, "phase", "outcome"),
		delTime:    histogram("awscni_del_duration_seconds", "Time of DelNetwork requests, by part of it and by outcome", addBuckets, "phase", "outcome"),
		calls:      counter("awscni_ec2api_req_count", "Calls to EC2", "fn"),
		callErrors: counter("awscni_ec2api_error_count", "Calls to EC2 that failed", "fn"),
		throttles:  counter("awscni_ec2api_throttle_count", "HTTP requests to EC2 that were throttled; most are repeated", "fn"),
		attempts:   counter("awscni_ec2api_attempt_count", "HTTP requests to EC2, repetitions included", "fn"),
		waits:      counter("awscni_ec2api_wait_seconds_total", "Time that calls to EC2 waited for this node's own rate limit", "fn"),
		orphans:    counter("awscni_orphan_enis", "ENIs found that belong to no node, by who looked and what became of them", "scope", "outcome"),
		apiErrors:  counter("awscni_aws_api_error_count", "Failed calls to EC2 and IMDS, by error code", "api", "error"),
		apiLatency: prometheus.NewSummaryVec(prometheus.SummaryOpts{
			Name: "awscni_aws_api_latency_ms", Help: "Time of calls to EC2 and IMDS, in ms",
		}, []string{"api", "error", "status"}),
		startTime: histogram("awscni_ipamd_startup_duration_seconds", "Time from the start of the process to the first request served",
			prometheus.DefBuckets, "success", "with_api_server", "failure_reason"),
		initTime: histogram("awscni_ipamd_node_initialization_duration_seconds", "Time to make the node ready for pods",
			prometheus.DefBuckets, "success"),
	}
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "awscni_build_info", Help: "The build; always 1"},
		[]string{"version", "goversion"})
	build.WithLabelValues(version, runtime.Version()).Set(1)
	backend := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "awscni_connmark_backend", Help: "What sets connection marks; the active one is 1",
	}, []string{"backend"})
	backend.WithLabelValues("nftables").Set(1)
	m.registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		build, backend, newViewCollector(view),
		m.dels, m.addTime, m.delTime, m.calls, m.callErrors, m.throttles, m.attempts, m.waits, m.orphans, m.apiErrors, m.apiLatency, m.startTime, m.initTime,
	)
	// A counter that appears with its first event has no rate of that event.
	for _, reason := range append(slices.Clone(delReasons), otherReason) {
		m.dels.WithLabelValues(reason)
	}
	for _, outcome := range orphanOutcomes {
		m.orphans.WithLabelValues(OrphanOfCluster, outcome)
	}
	return m
}

// Handler serves Path.
func (m *Metrics) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(Path, promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	return mux
}

// The phases of a request. Only requests that succeed have parts.
const (
	phaseTotal  = "total"  // from the request to the reply
	phaseWait   = "wait"   // until there was an address
	phaseCommit = "commit" // until the change was durable
)

// Add records an ADD. Outcome is out of a closed vocabulary.
func (m *Metrics) Add(outcome string, took, waited, recorded time.Duration) {
	m.addTime.WithLabelValues(phaseTotal, outcome).Observe(took.Seconds())
	if outcome == outcomeOK {
		m.addTime.WithLabelValues(phaseWait, outcome).Observe(waited.Seconds())
		m.addTime.WithLabelValues(phaseCommit, outcome).Observe(recorded.Seconds())
	}
}

// outcomeOK is the outcome of requests that succeed.
const outcomeOK = "OK"

// Del records a DEL. Reason is what the client says; outcome is out of a closed vocabulary.
func (m *Metrics) Del(reason, outcome string, took, recorded time.Duration) {
	if !slices.Contains(delReasons, reason) {
		reason = otherReason
	}
	m.dels.WithLabelValues(reason).Inc()
	m.delTime.WithLabelValues(phaseTotal, outcome).Observe(took.Seconds())
	if outcome == outcomeOK {
		m.delTime.WithLabelValues(phaseCommit, outcome).Observe(recorded.Seconds())
	}
}

// Who looks for orphans, and what becomes of one.
const (
	OrphanOfCluster = "cluster" // the elected cleaner
	OrphanFound     = "found"
	OrphanDeleted   = "deleted"
	OrphanFailed    = "failed"
)

var orphanOutcomes = []string{OrphanFound, OrphanDeleted, OrphanFailed}

// Orphans records ENIs that belong to no node.
func (m *Metrics) Orphans(scope, outcome string, n uint64) {
	m.orphans.WithLabelValues(scope, outcome).Add(float64(n))
}

// ec2Service is the SDK's name for EC2.
const ec2Service = "EC2"

// AWS records a call to EC2 or IMDS.
func (m *Metrics) AWS(c awsutils.Call) {
	failed := c.Err != nil
	m.apiLatency.WithLabelValues(c.Operation, strconv.FormatBool(failed), strconv.Itoa(c.Status)).
		Observe(float64(c.Duration) / float64(time.Millisecond))
	isEC2 := c.Service == ec2Service
	if isEC2 {
		m.calls.WithLabelValues(c.Operation).Inc()
		m.attempts.WithLabelValues(c.Operation).Add(float64(c.Attempts))
		m.throttles.WithLabelValues(c.Operation).Add(float64(c.Throttled))
		m.waits.WithLabelValues(c.Operation).Add(c.Waited.Seconds())
	}
	// IMDS says with a 404 that an instance or an ENI lacks something, which is no error.
	if !failed || !isEC2 && c.Status == http.StatusNotFound {
		return
	}
	class := awsutils.Classify(c.Err)
	code := c.Code
	if code == "" {
		code = class.String()
	}
	m.apiErrors.WithLabelValues(c.Operation, code).Inc()
	if isEC2 {
		m.callErrors.WithLabelValues(c.Operation).Inc()
	}
}

// Started records that requests are served. This cut does not ask the API server for anything.
func (m *Metrics) Started(took, initialization time.Duration) {
	m.startTime.WithLabelValues("true", "false", "").Observe(took.Seconds())
	m.initTime.WithLabelValues("true").Observe(initialization.Seconds())
}
