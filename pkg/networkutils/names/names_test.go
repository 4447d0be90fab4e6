package names

import "testing"

func TestVethSuffix(t *testing.T) {
	for _, c := range []struct {
		namespace, pod string
		index          int
		want           string
	}{
		{"kube-system", "coredns-57ff979f67-qqbdh", 0, "b5faff8a083"},
		{"kube-system", "coredns-57ff979f67-8ns9b", 0, "9571956a6cc"},
		{"default", "sample-pod", 0, "cc21c2d7785"},
		{"", "", 0, "3a52ce78095"},
		{"", "", 1, "ce799470a46"},
	} {
		if got := VethSuffix(c.namespace, c.pod, c.index); got != c.want {
			t.Errorf("VethSuffix(%q, %q, %d) = %s, want %s", c.namespace, c.pod, c.index, got, c.want)
		}
	}
}

func TestRouteTable(t *testing.T) {
	for _, c := range []struct{ card, device, want int }{
		{0, 0, 254}, {0, 1, 2}, {0, 4, 5}, {1, 0, 10100}, {1, 1, 10101},
	} {
		if got := RouteTable(c.card, c.device); got != c.want {
			t.Errorf("RouteTable(%d, %d) = %d, want %d", c.card, c.device, got, c.want)
		}
	}
}

func TestPodGateway(t *testing.T) {
	if got := PodGateway(false, 0).String(); got != "169.254.1.1" {
		t.Error(got)
	}
	if got := PodGateway(true, 1).String(); got != "fe80::2" {
		t.Error(got)
	}
}
