package plugin

import "testing"

func TestMTU(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{"": 9001, "9001": 9001, "1500": 1500, "576": 576, "575": 9001, "9002": 9001, "x": 9001, " 1500": 9001} {
		if got := (&config{MTU: text}).mtu(false); got != want {
			t.Errorf("mtu %q: got %d, want %d", text, got, want)
		}
	}
	if got := (&config{MTU: "1279"}).mtu(true); got != 1280 {
		t.Errorf("IPv6 with an MTU of 1279: got %d, want 1280", got)
	}
}

func TestMultiNICAnnotation(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]bool{"multi-nic-attachment": true, "": false, "Multi-NIC-attachment": false, "true": false} {
		conf, err := parseConfig([]byte(`{"name":"n","cniVersion":"0.4.0","runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"k8s.amazonaws.com/nicConfig":"` + value + `"}}}`))
		if err != nil {
			t.Fatal(err)
		}
		if conf.multiNIC() != want {
			t.Errorf("%q: %t", value, !want)
		}
	}
}
