package egress

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"testing"

	"vpccni/pkg/networkutils/podnet"

	"github.com/containernetworking/cni/pkg/skel"
)

func stock(t testing.TB, change map[string]any) []byte {
	t.Helper()
	conf := map[string]any{
		"cniVersion": "0.4.0", "name": "aws-cni", "type": "egress-cni", "mtu": "9001", "enabled": "true", "nodeIP": "2001:db8::10",
		"ipam": map[string]any{"type": "host-local", "dataDir": "/run/cni/v4pd/egress-v6-ipam",
			"ranges": [][]map[string]string{{{"subnet": "fd00::ac:00/118"}}}, "routes": []map[string]string{{"dst": "::/0"}}},
		"prevResult": map[string]any{"cniVersion": "0.4.0", "interfaces": []map[string]string{{"name": "enix"}, {"name": "eth0", "sandbox": "/x"}}},
	}
	for k, v := range change {
		conf[k] = v
	}
	text, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestDirection: the family of the node's address says which way out there is.
func TestDirection(t *testing.T) {
	t.Parallel()
	v4 := map[string]any{"type": "host-local", "dataDir": "/d", "ranges": [][]map[string]string{{{"subnet": "169.254.172.0/22"}}}}
	for _, tt := range []struct {
		change map[string]any
		v6, ok bool
		mtu    int
	}{
		{nil, true, true, 9001},
		{map[string]any{"mtu": "1000"}, true, true, 1280},
		{map[string]any{"nodeIP": "10.0.1.10", "ipam": v4, "mtu": "1000"}, false, true, 1000},
		{map[string]any{"nodeIP": "10.0.1.10"}, false, false, 0},
		{map[string]any{"ipam": v4}, false, false, 0},
		{map[string]any{"nodeIP": "ff02::1"}, false, false, 0},
		{map[string]any{"nodeIP": "2001:db8::1%eth0"}, false, false, 0},
		{map[string]any{"mtu": "0"}, false, false, 0},
	} {
		conf, err := parseConfig(stock(t, tt.change))
		if err != nil {
			t.Fatal(err)
		}
		w, err := conf.way()
		if (err == nil) != tt.ok || w.v6 != tt.v6 && tt.ok || w.mtu != tt.mtu && tt.ok {
			t.Errorf("%v: %+v %v", tt.change, w, err)
		}
	}
}

// FuzzConfig: whatever comes on stdin, nothing panics, and what is printed of a previous result is the previous result.
func FuzzConfig(f *testing.F) {
	f.Add(stock(f, nil))
	f.Add(stock(f, map[string]any{"enabled": "false", "nodeIP": "", "prevResult": nil}))
	f.Add([]byte(`{"prevResult":{"cniVersion":"1.0.0","interfaces":[null],"ips":[null]}}`))
	f.Add([]byte(`{"cniVersion":"1.1.0","prevResult":{"cniVersion":"1.1.0","interfaces":"x"},"mtu":"1","ipam":{"ranges":[[]]}}`))
	f.Fuzz(func(t *testing.T, stdin []byte) {
		conf, err := parseConfig(stdin)
		if err != nil {
			return
		}
		_, _ = conf.way()
		if conf.addable() != nil {
			return
		}
		c := call{args: &skel.CmdArgs{ContainerID: "c", IfName: "eth0", Netns: "/x"}, conf: conf}
		_, _ = c.previousVeth(true)
		var out bytes.Buffer
		if err := c.printPrevious(&out); err != nil {
			return
		}
		var was, now map[string]json.RawMessage
		if json.Unmarshal(conf.rawPrev, &was) != nil || json.Unmarshal(out.Bytes(), &now) != nil || len(now) < len(was) {
			t.Fatalf("%s became %s", conf.rawPrev, &out)
		}
		out.Reset()
		e := podnet.Egress{ContainerID: "c", PodInterface: "eth0", Netns: "/x", Address: netip.MustParseAddr("fd00::ac:2"), Range: netip.MustParsePrefix("fd00::ac:0/118")}
		if c.printWith(&out, e) == nil && !json.Valid(out.Bytes()) {
			t.Fatalf("%s became %s", conf.rawPrev, &out)
		}
	})
}
