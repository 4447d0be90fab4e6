package awsutils

import (
	"reflect"
	"testing"

	"github.com/aws/amazon-vpc-resource-controller-k8s/pkg/aws/vpc"
)

func TestLimitsOf(t *testing.T) {
	t.Parallel()
	got, _ := LimitsOf("t3.medium")
	want := Limits{ENIs: 3, IPv4PerENI: 6, Cards: []CardLimits{{0, 3}}, Hypervisor: "nitro"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("t3.medium: %+v, want %+v", got, want)
	}
	// The library says 60 ENIs, the sum over four cards.
	if got, _ := LimitsOf("p4d.24xlarge"); got.ENIs != 15 || len(got.Cards) != 4 || got.Cards[3] != (CardLimits{3, 15}) {
		t.Errorf("p4d.24xlarge: %+v", got)
	}
	if l, ok := LimitsOf("x99.large"); ok {
		t.Errorf("x99.large: %+v", l)
	}
	for name, entry := range vpc.Limits {
		l, ok := LimitsOf(name)
		if !ok || l.ENIs < 1 || l.IPv4PerENI < 2 || len(l.Cards) < 1 || l.Hypervisor == "" || l.ENIs > entry.Interface {
			t.Errorf("%s: %+v", name, l)
		}
	}
}

func TestInstanceTypeLimits(t *testing.T) {
	t.Parallel()
	const typesXML = "<DescribeInstanceTypesResponse><instanceTypeSet>"
	w := &wire{answers: []answer{
		ok(typesXML + `<item><instanceType>x99.large</instanceType><hypervisor>nitro</hypervisor><bareMetal>false</bareMetal>
<vCpuInfo><defaultVCpus>2</defaultVCpus></vCpuInfo>
<networkInfo><maximumNetworkInterfaces>10</maximumNetworkInterfaces><ipv4AddressesPerInterface>30</ipv4AddressesPerInterface>
<defaultNetworkCardIndex>1</defaultNetworkCardIndex><networkCards>
<item><networkCardIndex>1</networkCardIndex><maximumNetworkInterfaces>8</maximumNetworkInterfaces></item>
<item><networkCardIndex>0</networkCardIndex><maximumNetworkInterfaces>2</maximumNetworkInterfaces></item>
</networkCards></networkInfo></item></instanceTypeSet></DescribeInstanceTypesResponse>`),
		ok(typesXML + `<item><bareMetal>true</bareMetal><networkInfo><maximumNetworkInterfaces>4</maximumNetworkInterfaces>
<ipv4AddressesPerInterface>15</ipv4AddressesPerInterface></networkInfo></item></instanceTypeSet></DescribeInstanceTypesResponse>`),
		ok(typesXML + "<item><networkInfo/></item></instanceTypeSet></DescribeInstanceTypesResponse>"),
		ok(typesXML + "</instanceTypeSet></DescribeInstanceTypesResponse>"),
		failed(400, "InvalidInstanceType", "The following supplied instance types do not exist: [x99.large]"),
	}}
	e, _ := client(t, w)
	for _, want := range []Limits{
		{ENIs: 8, IPv4PerENI: 30, Cards: []CardLimits{{0, 2}, {1, 8}}, DefaultCard: 1, Hypervisor: "nitro", VCPUs: 2},
		{ENIs: 4, IPv4PerENI: 15, Cards: []CardLimits{{0, 4}}, Hypervisor: "unknown", BareMetal: true},
	} {
		if got, err := e.InstanceTypeLimits(t.Context(), "x99.large"); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
	for range 3 {
		if l, err := e.InstanceTypeLimits(t.Context(), "x99.large"); err == nil {
			t.Errorf("limits out of nothing: %+v", l)
		}
	}
	if got := w.form(0); got != "Action=DescribeInstanceTypes\nInstanceType.1=x99.large" {
		t.Errorf("request:\n%s", got)
	}
}

func TestLeastLimits(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		instanceType   string
		enis, ipv4Each int
	}{
		{"m99.medium", 2, 4},
		{"m99.24xlarge", 10, 30},
		{"m99.unheard-of", 2, 2},
	} {
		if l := LeastLimits(c.instanceType); l.ENIs != c.enis || l.IPv4PerENI != c.ipv4Each || !l.TakesPrefixes() || len(l.Cards) != 1 {
			t.Errorf("%s: %+v, want %d ENIs with %d addresses", c.instanceType, l, c.enis, c.ipv4Each)
		}
	}
}
