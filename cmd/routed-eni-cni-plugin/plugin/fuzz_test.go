package plugin

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// What the runtime hands over may be anything. None of it may end in a panic, or in a name or an address that the wiring
// would not take.

func FuzzNetconf(f *testing.F) {
	for _, seed := range []string{
		``, `{}`, `[]`, `{"cniVersion":"0.4.0","name":"aws-cni","type":"aws-cni","vethPrefix":"eni","mtu":"9001","podSGEnforcingMode":"strict"}`,
		`{"cniVersion":"1.1.0","name":"n","cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0"}]}`,
		`{"cniVersion":"1.1.0","name":"n","cni.dev/valid-attachments":null,"mtu":"-1","vethPrefix":null}`,
		`{"name":"n","runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"k8s.amazonaws.com/nicConfig":"multi-nic-attachment"}}}`,
		`{"name":"n","podSourceCheck":"pod","podSGEnforcingMode":"lenient","prevResult":{"cniVersion":"0.3.1"}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, stdin []byte) {
		conf, err := parseConfig(stdin)
		if err != nil {
			return
		}
		if p := conf.prefix(); p == "" || len(p) > 4 {
			t.Errorf("prefix %q", p)
		}
		for _, v6 := range []bool{false, true} {
			if mtu := conf.mtu(v6); mtu < 576 || mtu > 9001 || v6 && mtu < 1280 {
				t.Errorf("MTU %d", mtu)
			}
		}
		if conf.wirable() == nil && conf.SourceCheck != nil && *conf.SourceCheck == "strict" && !conf.sourceCheck() {
			t.Error("sources are not checked")
		}
		_ = conf.multiNIC()
		if _, err := livingAttachments(stdin, conf.ValidAttachments); err == nil && !strings.Contains(string(stdin), "attachments") {
			t.Error("a list of attachments from nowhere")
		}
	})
}

// FuzzArgs holds the parser against the library's, which it stands in for.
func FuzzArgs(f *testing.F) {
	for _, seed := range []string{
		"", ";", "=", "K8S_POD_NAME", "K8S_POD_NAME=", "K8S_POD_NAME=a;K8S_POD_NAME=b", "K8S_POD_NAME=a=b", "IgnoreUnknown=TRUE;COLOUR=red",
		"COLOUR=red;IgnoreUnknown=1;IgnoreUnknown=0", "IgnoreUnknown=yes",
		"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, args string) {
		var want struct {
			types.CommonArgs
			K8S_POD_NAME, K8S_POD_NAMESPACE, K8S_POD_INFRA_CONTAINER_ID, K8S_POD_UID types.UnmarshallableString
		}
		for pair := range strings.SplitSeq(args, ";") {
			// The library finds the embedded struct under its own name, and fails.
			if strings.HasPrefix(pair, "CommonArgs=") {
				return
			}
		}
		wantErr := types.LoadArgs(args, &want)
		got, err := parseArgs(args)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%q: got error %v, the library's is %v", args, err, wantErr)
		}
		if err == nil && (got != podArgs{string(want.K8S_POD_NAME), string(want.K8S_POD_NAMESPACE),
			string(want.K8S_POD_INFRA_CONTAINER_ID), string(want.K8S_POD_UID)}) {
			t.Errorf("%q: got %+v, want %+v", args, got, want)
		}
	})
}

func FuzzPrevResult(f *testing.F) {
	seeds, err := filepath.Glob("../testdata/previous/*.json")
	if err != nil || len(seeds) == 0 {
		f.Fatalf("%v, %v", seeds, err)
	}
	for _, file := range seeds {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{"cniVersion":"1.0.0","interfaces":[null,{"name":"dummycc21c2d7785","mac":"x"}],"ips":[null]}`))
	f.Add([]byte(`{"cniVersion":"0.2.0","ip4":{"ip":"192.168.1.1/32"}}`))
	f.Fuzz(func(t *testing.T, result []byte) {
		if !json.Valid(result) {
			return
		}
		stdin := append([]byte(`{"cniVersion":"1.0.0","name":"n","prevResult":`), append(result, '}')...)
		conf, err := parseConfig(stdin)
		if err != nil {
			return
		}
		c := &call{args: &skel.CmdArgs{IfName: "eth0"}, conf: conf, pod: podArgs{podName: "sample-pod", podNamespace: "default"},
			log: slog.New(slog.DiscardHandler)}
		prev := c.previous()
		if prev == nil {
			return
		}
		if prev.vlan < 0 || prev.vlan > 4094 || len(prev.interfaces) == 0 {
			t.Errorf("got %+v", prev)
		}
		for _, iface := range prev.interfaces {
			if !iface.address.IsSingleIP() || iface.address.Addr().Is4In6() {
				t.Errorf("address %s", iface.address)
			}
		}
	})
}

// FuzzStateFile reads what GC reads of ipamd's state: nothing of it may become garbage that is not named in full.
func FuzzStateFile(f *testing.F) {
	f.Add([]byte(`{"version":"vpc-cni-ipam/1","allocations":[{"networkName":"n","containerID":"c","ifName":"eth0","ipv4":"10.0.0.1",` +
		`"allocationTimestamp":1,"metadata":{"k8sPodNamespace":"default","k8sPodName":"web-0","interfacesCount":1}}]}`))
	f.Add([]byte(`{"version":"vpc-cni-ipam/1","allocations":[{"networkName":"n","containerID":"link:eni0","metadata":null}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		held, err := parseHeld(text)
		if err != nil {
			return
		}
		plan := sortOut("n", held, nil, time.Now())
		for _, h := range plan.gone {
			if h.Metadata.Pod == "" || h.Metadata.Namespace == "" || h.NetworkName != "n" {
				t.Errorf("%+v is garbage", h)
			}
		}
		for _, link := range []string{"eni", "eni3a52ce78095", "enizzzzzzzzzzz"} {
			_ = plan.isGarbage(link, "eni")
		}
	})
}
