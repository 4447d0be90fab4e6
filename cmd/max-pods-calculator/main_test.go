package main

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/aws/amazon-vpc-resource-controller-k8s/pkg/aws/vpc"

	"vpccni/pkg/awsutils"
)

// fakeCloud is an instance of one type, in an AWS that knows a few types. The zero value is a machine without AWS.
type fakeCloud struct {
	instanceType string
	types        map[string]awsutils.Limits
	asked        []string
}

var errNoAWS = errors.New("no route to aws")

func (f *fakeCloud) InstanceType(context.Context) (string, error) {
	f.asked = append(f.asked, "imds")
	if f.instanceType == "" {
		return "", errNoAWS
	}
	return f.instanceType, nil
}

func (f *fakeCloud) Limits(_ context.Context, name string) (awsutils.Limits, error) {
	f.asked = append(f.asked, "ec2 "+name)
	l, ok := f.types[name]
	if !ok {
		return l, errNoAWS
	}
	return l, nil
}

// calculator runs the command line and returns its exit code and what it printed.
func calculator(t *testing.T, aws cloud, line string) (code int, out, errOut string) {
	t.Helper()
	var o, e strings.Builder
	code = run(t.Context(), strings.Fields(line), aws, &o, &e)
	return code, o.String(), e.String()
}

func TestNumbersWithoutAWS(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"--instance-type m4.xlarge --cni-version 1.7.5":                                                      "58",
		"--instance-type m5.8xlarge --cni-version 1.11.2":                                                    "234",
		"--instance-type m5.8xlarge --cni-version 1.11.2 --cni-prefix-delegation-enabled":                    "250",
		"--instance-type m5.8xlarge --cni-version 1.8.0 --cni-prefix-delegation-enabled":                     "234",
		"--instance-type m5.8xlarge --cni-version 1.11.2 --cni-prefix-delegation-enabled --show-max-allowed": "3714",
		"--instance-type m5.xlarge --cni-version 1.11.2 --cni-prefix-delegation-enabled":                     "110",
		"--instance-type m4.xlarge --cni-version 1.11.2 --cni-prefix-delegation-enabled":                     "58",
		"--instance-type c6in.32xlarge --cni-version 1.18.0 --show-max-allowed":                              "394",
		"--instance-type c6in.32xlarge --cni-version 1.18.0":                                                 "250",
		"--instance-type p5.48xlarge --cni-version 1.18.0":                                                   "100",
		"--instance-type p5.48xlarge --cni-version 1.18.0 --show-max-allowed":                                "100",
		"--instance-type t3.medium --cni-version 1.18.0":                                                     "17",
		"--instance-type t3.medium --cni-version 1.18.0 --cni-prefix-delegation-enabled":                     "110",
		"--instance-type m5.large --cni-version 1.18.0 --cni-custom-networking-enabled":                      "20",
		"--instance-type m5.large --cni-version 1.18.0 --cni-max-eni 2":                                      "20",
		"--instance-type=m5.large --cni-version=1.18.0 --cni-max-eni=9":                                      "29",
		"--instance-type m5.large --cni-version latest":                                                      "29",
		"--instance-type a1.metal --cni-version 1.18.0":                                                      "110",
		"--instance-type a1.metal --cni-version 1.18.0 --cni-prefix-delegation-enabled --show-max-allowed":   "3714",
	} {
		var aws fakeCloud
		if code, out, errOut := calculator(t, &aws, line); code != 0 || out != want+"\n" || aws.asked != nil {
			t.Errorf("%s: exit %d, %q, asked %q; want %s\n%s", line, code, out, aws.asked, want, errOut)
		}
	}
}

// Every type of the table has a number without AWS, and the kubelet's number with it unless it is a Mac, which runs none.
func TestEveryKnownTypeWithoutAWS(t *testing.T) {
	t.Parallel()
	for name := range vpc.Limits {
		for _, more := range []string{"", " --cni-prefix-delegation-enabled", " --cni-custom-networking-enabled"} {
			line := "--cni-version 1.18.0 --instance-type " + name + more
			var aws fakeCloud
			if code, _, errOut := calculator(t, &aws, line+" --show-max-allowed"); code != 0 || aws.asked != nil {
				t.Errorf("%s --show-max-allowed: exit %d, asked %q\n%s", line, code, aws.asked, errOut)
			}
			if strings.HasPrefix(name, "mac") {
				continue
			}
			if code, _, errOut := calculator(t, &aws, line); code != 0 || aws.asked != nil {
				t.Errorf("%s: exit %d, asked %q: does the name tell the vCPUs?\n%s", line, code, aws.asked, errOut)
			}
		}
	}
}

func TestWhatIsAskedOfAWS(t *testing.T) {
	t.Parallel()
	aws := fakeCloud{instanceType: "m5.large", types: map[string]awsutils.Limits{
		"x99.small":  {ENIs: 2, IPv4PerENI: 2, Hypervisor: "nitro", VCPUs: 1},
		"x99.dense":  {ENIs: 8, IPv4PerENI: 30, Hypervisor: "nitro", VCPUs: 30},
		"x99.metal":  {ENIs: 8, IPv4PerENI: 30, Hypervisor: "unknown", BareMetal: true, VCPUs: 31},
		"x99.secret": {ENIs: 8, IPv4PerENI: 30},
		"mac1.metal": {ENIs: 8, IPv4PerENI: 30, VCPUs: 12},
	}}
	for _, c := range []struct{ line, want, asked string }{
		{"--instance-type-from-imds", "29", "imds"},
		{"--instance-type-from-imds --instance-type t3.medium", "29", "imds"},
		{"--instance-type x99.small", "4", "ec2 x99.small"},
		{"--instance-type x99.dense", "110", "ec2 x99.dense"},
		{"--instance-type x99.metal", "234", "ec2 x99.metal"},
		{"--instance-type x99.metal --cni-prefix-delegation-enabled", "250", "ec2 x99.metal"},
		{"--instance-type x99.secret --show-max-allowed", "234", "ec2 x99.secret"},
		{"--instance-type x99.secret", "", "ec2 x99.secret,ec2 x99.secret"},
		{"--instance-type x99.none", "", "ec2 x99.none"},
		{"--instance-type mac1.metal", "110", "ec2 mac1.metal"},
		{"--instance-type mac2.metal --show-max-allowed", "234", ""},
		{"--instance-type mac2.metal", "", "ec2 mac2.metal"},
	} {
		aws.asked = nil
		code, out, errOut := calculator(t, &aws, "--cni-version 1.18.0 "+c.line)
		if strings.TrimSpace(out) != c.want || (code == 0) != (c.want != "") || strings.Join(aws.asked, ",") != c.asked {
			t.Errorf("%s: exit %d, %q, asked %q\n%s", c.line, code, out, aws.asked, errOut)
		}
		if c.want == "" && !strings.HasPrefix(errOut, "error: x99.") && !strings.HasPrefix(errOut, "error: mac2.metal has addresses for 234 pods") {
			t.Errorf("%s: %s", c.line, errOut)
		}
	}
}

func TestArguments(t *testing.T) {
	t.Parallel()
	var noAWS fakeCloud
	for line, complaint := range map[string]string{
		"":                                        "error: --instance-type or --instance-type-from-imds is missing",
		"--cni-version 1.18.0":                    "error: --instance-type or --instance-type-from-imds is missing",
		"--instance-type m5.large":                "error: --cni-version is missing",
		"--instance-type --cni-version 1.18.0":    "error: --instance-type has no value",
		"--instance-type m5.large --cni-version":  "error: --cni-version has no value",
		"--instance-type m5.large --cni-version=": "error: --cni-version has no value",
		"--instance-type m5.large --cni-version 1 --cni-max-eni 0":                      `error: --cni-max-eni is "0"`,
		"--instance-type m5.large --cni-version 1 --cni-max-eni -1":                     `error: --cni-max-eni is "-1"`,
		"--instance-type m5.large --cni-version 1 --cni-max-eni two":                    `error: --cni-max-eni is "two"`,
		"--instance-type m5.large --cni-version latest --cni-prefix-delegation-enabled": `error: cni version "latest"`,
		"--instance-type-from-imds --cni-version 1.18.0":                                "error: instance type: no route to aws",
	} {
		code, out, errOut := calculator(t, &noAWS, line)
		if code != 1 || out != "" || !strings.HasPrefix(errOut, complaint) {
			t.Errorf("%q: exit %d, %q, %s", line, code, out, errOut)
		}
	}
	for _, line := range []string{"-h", "--help", "--instance-type m5.large --cni-version 1.18.0 --help"} {
		if code, out, errOut := calculator(t, &noAWS, line); code != 1 || out != usage || errOut != "" {
			t.Errorf("%q: exit %d, %q, %q", line, code, out, errOut)
		}
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	for line, warning := range map[string]string{
		"--colour blue": "warning: \"--colour\" means nothing and is ignored\nwarning: \"blue\" means nothing and is ignored\n",
		"--cni-prefix-delegation-enabled --instance-type m4.large": "warning: no prefix delegation: m4.large is neither nitro nor bare metal\n",
		"--cni-prefix-delegation-enabled --cni-version 1.8.0":      "warning: no prefix delegation: the cni needs version 1.9 for it\n",
		"--show-max-allowed": "",
	} {
		var noAWS fakeCloud
		code, out, errOut := calculator(t, &noAWS, "--instance-type m5.large --cni-version 1.18.0 "+line)
		if code != 0 || (out != "29\n" && out != "20\n") || errOut != warning {
			t.Errorf("%q: exit %d, %q, %q", line, code, out, errOut)
		}
	}
}
