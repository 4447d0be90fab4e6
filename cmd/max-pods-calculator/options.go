package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

const usage = `usage: max-pods-calculator (--instance-type TYPE | --instance-type-from-imds) --cni-version X.Y.Z [options]

Prints the number of pods that a node of this type should run: the kubelet's max-pods.

-h, --help                        print this and exit with 1
--instance-type TYPE              the instance type, such as m5.xlarge
--instance-type-from-imds         ask the instance metadata service for the type and the region
--cni-version X.Y.Z               the version of the VPC CNI; required
--cni-custom-networking-enabled   pods get no address of the primary ENI
--cni-prefix-delegation-enabled   the CNI assigns /28 prefixes; counts from CNI 1.9 on, on Nitro and bare metal
--cni-max-eni N                   the CNI uses N ENIs at most
--show-max-allowed                do not cap the number (110 up to 30 vCPUs, 250 above)
`

// errHelp is what parse returns when the usage was asked for.
var errHelp = errors.New("help was asked for")

type options struct {
	instanceType     string
	fromIMDS         bool
	cniVersion       string
	customNetworking bool
	prefixDelegation bool
	maxENI           int // 0: no limit
	showMaxAllowed   bool
	ignored          []string // arguments that mean nothing, in order
}

// parse reads the command line as the shell calculator does: options in any order, the last one of a kind counts, what
// it does not know is put aside. Values may also follow after "=".
func parse(args []string) (options, error) {
	var o options
	switches := map[string]*bool{
		"--instance-type-from-imds":       &o.fromIMDS,
		"--cni-custom-networking-enabled": &o.customNetworking,
		"--cni-prefix-delegation-enabled": &o.prefixDelegation,
		"--show-max-allowed":              &o.showMaxAllowed,
	}
	var maxENI string
	values := map[string]*string{
		"--instance-type": &o.instanceType,
		"--cni-version":   &o.cniVersion,
		"--cni-max-eni":   &maxENI,
	}
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if arg == "-h" || arg == "--help" {
			return o, errHelp
		}
		if on := switches[arg]; on != nil {
			*on = true
			continue
		}
		name, value, given := strings.Cut(arg, "=")
		to := values[name]
		if to == nil {
			o.ignored = append(o.ignored, arg)
			continue
		}
		if !given && len(args) > 0 && !strings.HasPrefix(args[0], "--") {
			value, args = args[0], args[1:]
		}
		if value == "" {
			return o, fmt.Errorf("%s has no value", name)
		}
		*to = value
	}
	if maxENI != "" {
		n, err := strconv.Atoi(maxENI)
		if err != nil || n < 1 {
			return o, fmt.Errorf("--cni-max-eni is %q, not a number above zero", maxENI)
		}
		o.maxENI = n
	}
	switch {
	case o.instanceType == "" && !o.fromIMDS:
		return o, errors.New("--instance-type or --instance-type-from-imds is missing")
	case o.cniVersion == "":
		return o, errors.New("--cni-version is missing")
	}
	return o, nil
}
