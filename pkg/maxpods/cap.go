package maxpods

import (
	"strconv"
	"strings"
)

// What Kubernetes has been tested with: more pods than this overload the kubelet before addresses run out.
const (
	// SmallCap is the most pods for a node with up to 30 vCPUs. A number that is not above it needs no cap.
	SmallCap = 110
	// LargeCap is the most pods for a larger node.
	LargeCap = 250
	// smallVCPUs is the largest number of vCPUs of a small node.
	smallVCPUs = 30
)

// Cap is the most pods that a node with so many vCPUs should run.
func Cap(vcpus int) int {
	if vcpus > smallVCPUs {
		return LargeCap
	}
	return SmallCap
}

// CapByName is Cap, told by the name of the instance type alone; false where the name does not tell.
//
// "N xlarge" means 4 N vCPUs. Old families are a bit off (m2.xlarge 2, c1.xlarge 8, c4.8xlarge 36), but only whether
// there are more than 30 matters, and the exceptions to "from 8 xlarge on" are known one by one. The name is no help for
// Macs, nor for HPC families: their size is that of a machine of which some cores are switched off.
func CapByName(instanceType string) (limit int, ok bool) {
	family, size, ok := strings.Cut(instanceType, ".")
	if !ok || family == "" {
		return 0, false
	}
	switch {
	case instanceType == "a1.metal", instanceType == "hs1.8xlarge": // 16 vCPUs each
		return SmallCap, true
	case strings.HasPrefix(family, "mac"):
		return 0, false
	case strings.HasPrefix(family, "hpc") && family != "hpc7g": // hpc7a.12xlarge has 24
		return 0, false
	case size == "metal":
		// A whole host, the smallest of them with 48 vCPUs; newer families have a size in the name.
		return LargeCap, true
	}
	switch size {
	case "nano", "micro", "small", "medium", "large", "xlarge":
		return SmallCap, true
	}
	number, ok := strings.CutSuffix(size, "xlarge")
	if metal, bare := strings.CutPrefix(size, "metal-"); bare {
		number, ok = strings.CutSuffix(metal, "xl")
	}
	xlarges, err := strconv.ParseUint(number, 10, 16)
	if !ok || err != nil || xlarges == 0 {
		return 0, false
	}
	return Cap(4 * int(xlarges)), true
}
