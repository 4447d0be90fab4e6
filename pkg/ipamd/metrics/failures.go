package metrics

import (
	"maps"
	"slices"

	"vpccni/pkg/ipamd"
)

// errorOf sorts failed calls into the errors that dashboards know.
var errorOf = map[string]string{
	"CreateENI":           "increaseIPPoolAllocENI",
	"AttachENI":           "increaseIPPoolAllocENI",
	"DeleteOnTermination": "increaseIPPoolAllocENI",
	"AssignIPs":           "increaseIPPoolAllocIPAddressesFailed",
	"AssignAddresses":     "increaseIPPoolAllocIPAddressesFailed",
	"AssignPrefixes":      "increaseIPPoolAllocIPAddressesFailed",
	"WaitLink":            "increaseIPPoolwaitENIAttachedFailed",
	"UnassignIPs":         "decreaseIPPool",
	"UnassignPrefixes":    "decreaseIPPool",
	"DetachENI":           "decreaseIPPoolFreeENIFailed",
	"DeleteENI":           "decreaseIPPoolFreeENIFailed",
}

// otherCalls are those that read.
const otherCalls = "reconcileFailedGetENIs"

// Errors that are no calls.
const (
	errorSetUp      = "increaseIPPoolsetupENIFailed" // the host's network is not ready for an ENI
	errorCheckpoint = "checkpoint"
	errorHost       = "hostNetwork"
)

// tidyOf sorts failures to take an ENI away into those that dashboards know, by call and purpose.
var tidyOf = map[[2]string]string{
	{"DeleteENI", "undo"}:              "AllocENIDeleteErr",
	{"DeleteENI", "remove"}:            "FreeENIDeleteErr",
	{"DeleteENI", "leftover"}:          "cleanUpLeakedENIDeleteErr",
	{"DescribeENIsByID", "remove"}:     "getENIAttachmentIDFailed",
	{"DeleteOnTermination", "protect"}: "ENICleanupUponModifyNetworkErr",
}

// failures shows what went wrong. Every series of errors is there from the start, for a counter that appears with its
// first event has no rate of that event.
func (c *viewCollector) failures(s sink, v ipamd.View) {
	errors := map[string]uint64{otherCalls: 0, errorSetUp: v.Counters.NotReady, errorCheckpoint: v.Counters.CommitErrors, errorHost: v.Counters.ApplyErrors}
	for _, fn := range errorOf {
		errors[fn] = 0
	}
	type tidy struct{ fn, class string }
	tidying := map[tidy]uint64{}
	for f, n := range v.Counters.Failures {
		fn, known := errorOf[f.Call]
		if !known {
			fn = otherCalls
		}
		errors[fn] += n
		if fn, ok := tidyOf[[2]string{f.Call, f.Purpose}]; ok {
			tidying[tidy{fn, f.Class}] += n
		}
	}
	for _, fn := range slices.Sorted(maps.Keys(errors)) {
		s.count(c.errors, errors[fn], fn)
	}
	for t, n := range tidying {
		s.count(c.utils, n, t.fn, t.class)
	}
}
