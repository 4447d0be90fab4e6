package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"vpccni/lab/ec2"
	"vpccni/lab/fabric"
	"vpccni/lab/imds"
)

// Endpoint is the URL of the EC2 API on every node.
var Endpoint = "http://" + fabric.EC2Addr.String()

// EndpointTLS is the same over HTTPS, with a certificate of the lab's own authority.
var EndpointTLS = "https://" + fabric.EC2Addr.String()

// headerTimeout bounds the time that a client takes for its request's headers.
const headerTimeout = 30 * time.Second

// vpc is the simulated account with its network: everything of a lab but the nodes.
type vpc struct {
	cloud   *ec2.Cloud
	imds    *imds.Server
	fabric  *fabric.Fabric
	ca      *authority
	tls     *tls.Config
	subnets map[string]string // ids by name
	id      string            // of the VPC

	servers sync.WaitGroup
	stop    []*http.Server
}

func newVPC(spec Spec, log *slog.Logger) (*vpc, error) {
	ca, err := newAuthority()
	if err != nil {
		return nil, err
	}
	v := &vpc{ca: ca, subnets: map[string]string{}}
	if v.fabric, err = fabric.New(fabric.Options{Log: log, MoreHosts: spec.MoreHosts}); err != nil {
		return nil, err
	}
	v.cloud = ec2.New(ec2.Options{
		Clock: spec.Clock, Plane: v.fabric, Seed: spec.Seed, Logger: log,
		AttachDelay: spec.AttachDelay, DetachDelay: spec.DetachDelay, APILatency: spec.APILatency,
	})
	v.imds = imds.New(v.cloud, imds.Options{Clock: spec.Clock})
	if err := v.populate(spec); err != nil {
		return nil, errors.Join(err, v.close())
	}
	if err := v.serveInside(log); err != nil {
		return nil, errors.Join(err, v.close())
	}
	return v, nil
}

func (v *vpc) populate(spec Spec) error {
	made, err := v.cloud.CreateVPC(spec.CIDRs...)
	if err != nil {
		return fmt.Errorf("create the vpc: %w", err)
	}
	v.id = made.ID
	for _, s := range spec.Subnets {
		tags := map[string]string{"Name": s.Name}
		for k, value := range s.Tags {
			tags[k] = value
		}
		sub, err := v.cloud.CreateSubnet(ec2.Subnet{VPCID: made.ID, CIDR: s.CIDR, IPv6: s.IPv6, Zone: s.Zone, Public: !s.Private, Tags: tags})
		if err != nil {
			return fmt.Errorf("create subnet %s: %w", s.Name, err)
		}
		v.subnets[s.Name] = sub.ID
	}
	return nil
}

// serveInside opens what EC2 offers inside a VPC, in the namespace of the VPC's router.
func (v *vpc) serveInside(log *slog.Logger) error {
	region := v.cloud.Region()
	var err error
	v.tls, err = v.ca.server(
		[]string{"ec2." + region + ".amazonaws.com", "ec2." + region + ".api.aws", "localhost"},
		[]net.IP{fabric.EC2Addr.AsSlice(), net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	for _, at := range []struct {
		addr    netip.Addr
		port    int
		handler http.Handler
		tls     *tls.Config
	}{
		{fabric.IMDSAddr, 80, v.imds.Handler(v.caller), nil},
		{fabric.EC2Addr, 80, v.ec2Handler(), nil},
		{fabric.EC2Addr, 443, v.ec2Handler(), v.tls},
	} {
		var l net.Listener
		err := v.fabric.Do(fabric.HostVPC, func() error {
			var err error
			l, err = net.Listen("tcp", net.JoinHostPort(at.addr.String(), strconv.Itoa(at.port)))
			return err
		})
		if err != nil {
			return fmt.Errorf("listen in the vpc: %w", err)
		}
		v.serve(l, at.handler, at.tls, log)
	}
	return nil
}

// caller tells instances by the address they ask from, as the real service does by their link.
func (v *vpc) caller(r *http.Request) (instanceID string, ok bool) {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return "", false
	}
	i, ok := v.cloud.InstanceByAddress(from.Addr().Unmap())
	return i.ID, ok
}

// ec2Handler answers for EC2, and tells IMDS when something may have changed: its lag counts from there.
func (v *vpc) ec2Handler() http.Handler {
	api := v.cloud.Handler()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Deferred: a lost response ends the handler by a panic that net/http knows.
		defer func() {
			for _, i := range v.cloud.Instances() {
				v.imds.Changed(i.ID)
			}
		}()
		api.ServeHTTP(w, r)
	})
}

// serve serves until close.
func (v *vpc) serve(l net.Listener, handler http.Handler, config *tls.Config, log *slog.Logger) {
	if config != nil {
		l = tls.NewListener(l, config)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: headerTimeout,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	v.stop = append(v.stop, server)
	v.servers.Go(func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("server ended", "address", l.Addr(), "error", err)
		}
	})
}

func (v *vpc) close() error {
	var errs []error
	for _, s := range v.stop {
		errs = append(errs, s.Close())
	}
	v.servers.Wait()
	return errors.Join(append(errs, v.fabric.Close())...)
}

// ServeEC2 serves the EC2 API on a listener of the caller's, such as one on the machine's loopback. It takes the
// listener over.
func (c *Cluster) ServeEC2(l net.Listener, https bool) {
	var config *tls.Config
	if https {
		config = c.vpc.tls
	}
	c.vpc.serve(l, c.vpc.ec2Handler(), config, c.log)
}

// ListenOn opens a listener in one of the fabric's namespaces, for a server of the caller's.
func (c *Cluster) ListenOn(ctx context.Context, host fabric.Host, network, address string) (l net.Listener, err error) {
	err = c.vpc.fabric.Do(host, func() error {
		l, err = (&net.ListenConfig{}).Listen(ctx, network, address)
		return err
	})
	return l, err
}
