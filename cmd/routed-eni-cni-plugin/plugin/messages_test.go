package plugin

import (
	"reflect"
	"slices"
	"testing"

	"vpccni/rpc"

	"google.golang.org/protobuf/proto"
)

// complete fails unless every field of the message is set, so that a field that rpc.proto gains is noticed here.
func complete(t *testing.T, m proto.Message) proto.Message {
	t.Helper()
	fields := m.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if !m.ProtoReflect().Has(fields.Get(i)) {
			t.Errorf("%T: the test does not set %s", m, fields.Get(i).Name())
		}
	}
	return m
}

func TestRequestsAreThoseOfTheContract(t *testing.T) {
	t.Parallel()
	pod := podName{"pod", "namespace"}
	for _, tt := range []struct {
		encoded []byte
		want    proto.Message
		got     proto.Message
	}{
		{
			addRequest{pod, "infra", "netns", "eth0", "net", "container", "version", true}.encode(),
			&rpc.AddNetworkRequest{
				K8S_POD_NAME: "pod", K8S_POD_NAMESPACE: "namespace", K8S_POD_INFRA_CONTAINER_ID: "infra", Netns: "netns",
				IfName: "eth0", NetworkName: "net", ContainerID: "container", ClientVersion: "version", RequiresMultiNICAttachment: true,
			},
			&rpc.AddNetworkRequest{},
		},
		{
			delRequest{pod, "infra", "reason", "eth0", "net", "container", "version", "uid"}.encode(),
			&rpc.DelNetworkRequest{
				K8S_POD_NAME: "pod", K8S_POD_NAMESPACE: "namespace", K8S_POD_INFRA_CONTAINER_ID: "infra", Reason: "reason",
				IfName: "eth0", NetworkName: "net", ContainerID: "container", ClientVersion: "version", K8S_POD_UID: "uid",
			},
			&rpc.DelNetworkRequest{},
		},
		{
			enforceRequest{pod, "strict", 300}.encode(),
			&rpc.EnforceNpRequest{K8S_POD_NAME: "pod", K8S_POD_NAMESPACE: "namespace", NETWORK_POLICY_MODE: "strict", InterfaceCount: 300},
			&rpc.EnforceNpRequest{},
		},
		{
			pod.encode(),
			&rpc.DeleteNpRequest{K8S_POD_NAME: "pod", K8S_POD_NAMESPACE: "namespace"},
			&rpc.DeleteNpRequest{},
		},
	} {
		if err := proto.Unmarshal(tt.encoded, tt.got); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(tt.got, complete(t, tt.want)) {
			t.Errorf("got %v, want %v", tt.got, tt.want)
		}
	}
	if got := len(addRequest{}.encode()) + len(delRequest{}.encode()) + len(enforceRequest{}.encode()); got != 0 {
		t.Errorf("empty requests have %d bytes", got)
	}
}

func TestRepliesAreThoseOfTheContract(t *testing.T) {
	t.Parallel()
	addresses := []*rpc.IPAllocationMetadata{
		{IPv4Addr: "10.0.0.1", IPv6Addr: "fd00::1", DeviceNumber: -1, RouteTableId: 10100},
		{IPv4Addr: "10.0.0.2"},
	}
	complete(t, addresses[0])
	want := []metadata{{"10.0.0.1", "fd00::1", -1, 10100}, {ipv4: "10.0.0.2"}}

	var add addReply
	decode(t, complete(t, &rpc.AddNetworkReply{
		Success: true, IPAllocationMetadata: addresses, UseExternalSNAT: true, VPCv4CIDRs: []string{"10.0.0.0/8"}, PodVlanId: 7,
		PodENIMAC: "mac", PodENISubnetGW: "gw", ParentIfIndex: 3, VPCv6CIDRs: []string{"fd00::/8"}, NetworkPolicyMode: "strict",
		Code: "code", Reason: "reason", PerPodRules: true,
	}), add.decode)
	if !reflect.DeepEqual(add, addReply{true, want, 7, "mac", "gw", 3, "strict", "code", "reason", true}) {
		t.Errorf("got %+v", add)
	}
	var del delReply
	decode(t, complete(t, &rpc.DelNetworkReply{Success: true, IPAllocationMetadata: addresses, PodVlanId: 7, NetworkPolicyMode: "strict"}), del.decode)
	if !reflect.DeepEqual(del, delReply{true, want, 7, "strict"}) {
		t.Errorf("got %+v", del)
	}
	for _, m := range []proto.Message{&rpc.EnforceNpReply{Success: true}, &rpc.DeleteNpReply{Success: true}} {
		var policy policyReply
		decode(t, m, policy.decode)
		if !policy.success {
			t.Errorf("%T: no success", m)
		}
	}
}

func decode(t *testing.T, m proto.Message, decode func([]byte) error) {
	t.Helper()
	encoded, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	// As the next version may send it.
	encoded = append(encoded, 0xf9, 0x3f, 1, 2, 3, 4, 5, 6, 7, 8, 0xfd, 0x3f, 1, 2, 3, 4)
	if err := decode(encoded); err != nil {
		t.Fatal(err)
	}
}

func FuzzReply(f *testing.F) {
	add, _ := proto.Marshal(&rpc.AddNetworkReply{Success: true, IPAllocationMetadata: []*rpc.IPAllocationMetadata{{IPv4Addr: "10.0.0.1", RouteTableId: 2}},
		PodVlanId: 7, PodENIMAC: "02:00:00:00:07:07", PodENISubnetGW: "10.0.0.1", ParentIfIndex: 3, NetworkPolicyMode: "strict", Code: "AtLimit", Reason: "full"})
	del, _ := proto.Marshal(&rpc.DelNetworkReply{Success: true, IPAllocationMetadata: []*rpc.IPAllocationMetadata{{IPv6Addr: "fd00::1", DeviceNumber: 1}}, PodVlanId: 7})
	f.Add(add)
	f.Add(del)
	f.Add([]byte{})
	f.Add([]byte{0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Add([]byte{0x12, 0x02, 0x0a, 0x7f})
	f.Fuzz(func(t *testing.T, b []byte) {
		var add addReply
		addErr := add.decode(b)
		var del delReply
		delErr := del.decode(b)
		var policy policyReply
		_ = policy.decode(b)
		for _, list := range [][]metadata{add.addresses, del.addresses} {
			if got, err := allocations(list); err == nil && (len(got) == 0 || len(got) != len(list)) {
				t.Errorf("%d addresses of %d", len(got), len(list))
			}
		}
		// What the generated code reads, ours reads the same. (It refuses more: field numbers out of range, groups,
		// strings that are no UTF-8.)
		var wantAdd rpc.AddNetworkReply
		if proto.Unmarshal(b, &wantAdd) == nil && addErr == nil &&
			(add.success != wantAdd.GetSuccess() || add.code != wantAdd.GetCode() || add.policyMode != wantAdd.GetNetworkPolicyMode() ||
				add.vlan != wantAdd.GetPodVlanId() || add.branchMAC != wantAdd.GetPodENIMAC() || add.branchRouter != wantAdd.GetPodENISubnetGW() ||
				add.trunk != wantAdd.GetParentIfIndex() || !same(add.addresses, wantAdd.GetIPAllocationMetadata())) {
			t.Errorf("got %+v, want %v", add, &wantAdd)
		}
		var wantDel rpc.DelNetworkReply
		if proto.Unmarshal(b, &wantDel) == nil && delErr == nil &&
			(del.success != wantDel.GetSuccess() || del.policyMode != wantDel.GetNetworkPolicyMode() || del.vlan != wantDel.GetPodVlanId() ||
				!same(del.addresses, wantDel.GetIPAllocationMetadata())) {
			t.Errorf("got %+v, want %v", del, &wantDel)
		}
	})
}

func same(got []metadata, want []*rpc.IPAllocationMetadata) bool {
	return slices.EqualFunc(got, want, func(g metadata, w *rpc.IPAllocationMetadata) bool {
		return g == metadata{w.GetIPv4Addr(), w.GetIPv6Addr(), w.GetDeviceNumber(), w.GetRouteTableId()}
	})
}
