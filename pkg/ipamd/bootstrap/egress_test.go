package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/config"
	"vpccni/pkg/networkutils/hostnet"
)

type nodeIPv6 struct {
	addr  netip.Addr
	err   error
	calls int
}

func (n *nodeIPv6) NodeIPv6(context.Context) (netip.Addr, error) { n.calls++; return n.addr, n.err }

func TestEgress(t *testing.T) {
	t.Parallel()
	id := awsutils.Identity{PrimaryIP: netip.MustParseAddr("10.0.1.10")}
	own := netip.MustParseAddr("2001:db8::10")
	v6 := []hostnet.Egress{{Range: netip.MustParsePrefix("fd00::ac:0/118"), To: own}}
	v4 := []hostnet.Egress{{Range: netip.MustParsePrefix("169.254.172.0/22"), To: id.PrimaryIP}}
	for _, tt := range []struct {
		name  string
		conf  config.Config
		imds  nodeIPv6
		want  []hostnet.Egress
		calls int
		log   string
		fails bool
	}{
		{name: "IPv4 pods, off", conf: config.Config{IPv4: true, V4Egress: true}, imds: nodeIPv6{addr: own}},
		{name: "IPv4 pods, on", conf: config.Config{IPv4: true, V6Egress: true, V4Egress: true}, imds: nodeIPv6{addr: own}, want: v6, calls: 1},
		{name: "IPv4 pods, no address", conf: config.Config{IPv4: true, V6Egress: true}, calls: 1, log: "no IPv6 address"},
		{name: "IPv4 pods, IMDS fails", conf: config.Config{IPv4: true, V6Egress: true}, imds: nodeIPv6{err: errors.New("no")}, calls: 1, fails: true},
		{name: "IPv6 pods, on", conf: config.Config{IPv6: true, V4Egress: true, V6Egress: true}, want: v4},
		{name: "IPv6 pods, off", conf: config.Config{IPv6: true, V6Egress: true}},
	} {
		var log bytes.Buffer
		got, err := Egress(t.Context(), tt.conf, id, &tt.imds, slog.New(slog.NewTextHandler(&log, nil)))
		if !reflect.DeepEqual(got, tt.want) || (err != nil) != tt.fails || tt.imds.calls != tt.calls || !strings.Contains(log.String(), tt.log) {
			t.Errorf("%s: %v %v, %d calls, log %q", tt.name, got, err, tt.imds.calls, &log)
		}
	}
}
