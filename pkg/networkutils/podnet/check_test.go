package podnet

import (
	"context"
	"strings"
	"testing"

	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/networkutils/nstest"
)

func TestCheckFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	const veth = "HOSTVETH"
	for _, v6 := range []bool{false, true} {
		address, family := "10.0.1.11/32", "-4"
		gateway, addr := names.PodGateway(v6, 0).String(), "10.0.1.11"
		if v6 {
			address, family, gateway, addr = "2001:db8::11/128", "-6", names.PodGateway(v6, 0).String(), "2001:db8::11"
		}
		for _, tt := range []struct {
			name  string
			inPod bool
			args  string
			want  string
		}{
			{"nothing", true, "link show", ""},
			{"the veth is gone", false, "link del " + veth, "get link"},
			{"the veth is down", false, "link set " + veth + " down", "is down"},
			{"the veth's MAC address changed", false, "link set " + veth + " address 02:00:00:00:00:99", "gateway"},
			{"the host's routes are gone", false, "route flush table all " + addr, ""}, // see below
			{"the pod's interface is down", true, "link set eth0 down", "in the pod"},
			{"the pod's interface has another name", true, "link set eth0 down name eth9", "get link eth0"},
			{"the address is gone", true, "addr del " + address + " dev eth0", "does not own"},
			{"the address is on another interface", true, "addr add " + address + " dev lo; ip addr del " + address + " dev eth0", "does not own"},
			{"the default route is gone", true, "route del default", "in the pod"},
			{"the default route leads elsewhere", true, "route replace default dev lo", "default route"},
			{"the neighbour is gone", true, "neigh del " + gateway + " dev eth0", "in the pod"},
			{"the neighbour is another one", true, "neigh replace " + gateway + " lladdr 02:00:00:00:00:99 dev eth0", "gateway"},
			{"the neighbour may go stale", true, "neigh replace " + gateway + " lladdr MAC nud reachable dev eth0", "gateway"},
		} {
			t.Run(family+" "+tt.name, func(t *testing.T) {
				t.Parallel()
				host, netns := nstest.New(t), nstest.New(t)
				pod := podOf(netns, "c1", "web-0", address)
				mustSetup(t, host, pod)
				mac := strings.Fields(host.Run("sh", "-c", "ip -br link show dev "+pod.Interfaces[0].HostVeth))[2]
				command := strings.NewReplacer(veth, pod.Interfaces[0].HostVeth, "MAC", mac).Replace("ip " + family + " " + tt.args)
				want := tt.want
				if strings.HasPrefix(tt.args, "route flush") {
					command = "ip " + family + " route del " + addr + " table 5120; ip " + family + " route del " + addr
					want = "route to"
					if v6 {
						host.Run("ip", "-6", "route", "add", "2001:db8::/32", "dev", "lo")
						want = "the host sends"
					}
				}
				where := host
				if tt.inPod {
					where = netns
				}
				where.Run("sh", "-c", command)
				err := in(t, host, func(ctx context.Context) error { return Check(ctx, pod) })
				switch {
				case want == "" && err != nil:
					t.Error(err)
				case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
					t.Errorf("got %v, want %q", err, want)
				}
			})
		}
	}
}
