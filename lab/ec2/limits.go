package ec2

import (
	"slices"
	"strconv"
	"strings"

	"github.com/aws/amazon-vpc-resource-controller-k8s/pkg/aws/vpc"
)

// limits are the limits of an instance type that matter to ENIs.
type limits struct {
	*vpc.VPCLimits
}

// limitsOf gives the limits of an instance type; false if EC2 has no such type.
func limitsOf(instanceType string) (limits, bool) {
	l, ok := vpc.Limits[instanceType]
	return limits{l}, ok
}

// enisOn is how many ENIs the network card takes, 0 if the type has no such card.
func (l limits) enisOn(card int) int {
	for _, c := range l.NetworkCards {
		if int(c.NetworkCardIndex) == card {
			return int(c.MaximumNetworkInterfaces)
		}
	}
	return 0
}

// instanceTypes are the names of all types, sorted.
func instanceTypes() []string {
	names := make([]string, 0, len(vpc.Limits))
	for name := range vpc.Limits {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// vcpus is the number of virtual CPUs as the size in the type's name tells it; 0 where the name does not tell.
func vcpus(instanceType string) int {
	family, size, _ := strings.Cut(instanceType, ".")
	switch size {
	case "nano", "micro", "small", "medium":
		if strings.HasPrefix(family, "t3") || strings.HasPrefix(family, "t4g") || instanceType == "t2.medium" {
			return 2
		}
		return 1
	case "large":
		return 2
	case "xlarge":
		return 4
	}
	n, err := strconv.Atoi(strings.TrimSuffix(size, "xlarge"))
	if err != nil || !strings.HasSuffix(size, "xlarge") {
		return 0
	}
	return 4 * n
}
