package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jonboulle/clockwork"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/config"
	"vpccni/pkg/ipamd/warmpool"
	"vpccni/pkg/networkutils/hostnet"
)

// service is an IMDS that fails for some time after boot.
type service struct {
	mu    sync.Mutex
	fails int
	asked int
}

func (s *service) Identity(context.Context) (awsutils.Identity, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked++; s.asked <= s.fails {
		return awsutils.Identity{}, errors.New("no route")
	}
	return awsutils.Identity{InstanceID: "i-1", SubnetID: "subnet-1"}, nil
}

func (s *service) VPCCIDRs(context.Context) ([]netip.Prefix, error) {
	return []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}, nil
}

func (s *service) SecurityGroups(context.Context) ([]string, error) { return []string{"sg-1"}, nil }

func (s *service) ENIs(context.Context) ([]awsutils.ENI, error) {
	return []awsutils.ENI{
		{ID: "eni-1", SubnetID: "subnet-1", SubnetCIDR: netip.MustParsePrefix("10.0.1.0/24")},
		{ID: "eni-6", SubnetID: "subnet-6"},
	}, nil
}

func TestDiscover(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		fails int
		took  time.Duration
		err   string
	}{
		{fails: 0},
		{fails: 2, took: firstPause + 2*firstPause},
		{fails: 1000, took: discoverFor, err: "instance metadata: no route"},
	} {
		t.Run(fmt.Sprint(tt.fails), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				got, err := Discover(t.Context(), &service{fails: tt.fails}, clockwork.NewRealClock(), slog.New(slog.DiscardHandler))
				if took := time.Since(start); took != tt.took {
					t.Errorf("took %v, want %v", took, tt.took)
				}
				if tt.err != "" {
					if err == nil || err.Error() != tt.err {
						t.Errorf("error %v, want %s", err, tt.err)
					}
					return
				}
				if err != nil || got.Identity.InstanceID != "i-1" || len(got.VPCCIDRs) != 1 || len(got.Groups) != 1 ||
					len(got.Subnets) != 1 || got.Subnets["subnet-1"].String() != "10.0.1.0/24" {
					t.Errorf("%+v, %v", got, err)
				}
			})
		})
	}
}

func TestRefresh(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		calls := 0
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		Refresh(ctx, clockwork.NewRealClock(), "things", slog.New(slog.NewTextHandler(&log, nil)), func(ctx context.Context) error {
			if _, bounded := ctx.Deadline(); !bounded {
				t.Error("no deadline")
			}
			if calls++; calls > 10 && calls <= 20 {
				return errors.New("away")
			}
			return nil
		})
		if calls < 108 || calls > 134 { // every 27 to 33 s
			t.Errorf("%d calls in an hour", calls)
		}
		if lines := strings.Count(log.String(), "\n"); lines != 2 || !strings.Contains(log.String(), "refreshed again") {
			t.Errorf("log:\n%s", &log)
		}
	})
}

func TestSettings(t *testing.T) {
	t.Parallel()
	env := map[string]string{
		"ENABLE_IPv4": "true", "WARM_IP_TARGET": "3", "MAX_ENI": "2", "IP_COOLDOWN_PERIOD": "5", "ADD_WAIT_TIMEOUT": "0",
		"AWS_VPC_K8S_CNI_RANDOMIZESNAT": "hashrandom", "AWS_VPC_K8S_CNI_EXTERNALSNAT": "true", "CLUSTER_NAME": "c",
	}
	cfg, err := config.Load(func(name string) (string, bool) { v, ok := env[name]; return v, ok })
	if err != nil {
		t.Fatal(err)
	}
	nitro := awsutils.Limits{Hypervisor: "nitro"}
	s := Settings(cfg, nitro, slog.New(slog.DiscardHandler))
	if s.Targets.WarmIP != 3 || s.MaxENI != 2 || s.Cooldown != 5*time.Second || s.ClusterName != "c" || s.IgnoreUntagged {
		t.Errorf("%+v", s)
	}
	if s.Targets.MinENIAge != warmpool.DefaultMinENIAge || s.Targets.ShrinkDelay != warmpool.DefaultShrinkDelay ||
		s.Targets.RemovePace != warmpool.DefaultRemovePace {
		t.Errorf("pace is not the default: %+v", s.Targets)
	}
	if s.AddWait <= 0 || s.AddWait > time.Millisecond {
		t.Errorf("ADD_WAIT_TIMEOUT=0 waits %v", s.AddWait)
	}
	if h := s.Host; !h.ExternalSNAT || h.SNATRandom != hostnet.SNATRandomHash || h.PrimaryMark != 0x80 || h.ENIMask != 0x7f ||
		h.VethPrefix != "eni" || h.MTU != 9001 || !h.NodePort || h.IPv6 || h.BranchPods != hostnet.BranchOff {
		t.Errorf("%+v", h)
	}
	for mode, want := range map[config.SecurityGroupMode]hostnet.BranchMode{
		config.SecurityGroupStrict: hostnet.BranchStrict, config.SecurityGroupStandard: hostnet.BranchStandard,
	} {
		c := cfg
		c.PodENI, c.SecurityGroupMode, c.IPv4, c.IPv6 = true, mode, false, true
		if h := Settings(c, nitro, slog.New(slog.DiscardHandler)).Host; h.BranchPods != want || h.IPv4 || !h.IPv6 {
			t.Errorf("%s: %+v", mode, h)
		}
	}
	if s.Targets.Prefixes {
		t.Error("prefixes although nobody asked for them")
	}
	env["ENABLE_PREFIX_DELEGATION"], env["WARM_PREFIX_TARGET"] = "true", "2"
	if cfg, err = config.Load(func(name string) (string, bool) { v, ok := env[name]; return v, ok }); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		limits   awsutils.Limits
		prefixes bool
	}{
		{nitro, true}, {awsutils.Limits{Hypervisor: "unknown", BareMetal: true}, true}, {awsutils.Limits{Hypervisor: "xen"}, false},
	} {
		var log bytes.Buffer
		s := Settings(cfg, c.limits, slog.New(slog.NewTextHandler(&log, nil)))
		if s.Targets.Prefixes != c.prefixes || s.Targets.WarmPrefix != 2 || c.prefixes != (log.Len() == 0) {
			t.Errorf("%+v: %+v, log %q", c.limits, s.Targets, &log)
		}
	}
	for _, mode := range []config.SNATRandom{config.SNATRandomFully, config.SNATRandomHash, config.SNATRandomNone} {
		if _, ok := snatRandom[mode]; !ok {
			t.Errorf("no SNAT mode for %q", mode)
		}
	}
}
