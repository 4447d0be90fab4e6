// Package cluster ties a lab together: a simulated EC2 whose decisions the fabric carries, nodes with their ENIs
// plugged in, ipamd and the CNI plugin on them, and pods made through libcni as container runtimes make them.
// It runs in a sandbox.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"vpccni/lab/ec2"
	"vpccni/lab/fabric"
	"vpccni/lab/imds"
	"vpccni/lab/sandbox"
)

// CAFile is where nodes find the certificate of the lab's authority.
const CAFile = shareDir + "/" + caName

const (
	shareDir = "/opt/vpclab/share"
	caName   = "ca.pem"
)

// Cluster is a running lab. Its methods may be called concurrently.
type Cluster struct {
	spec  Spec
	log   *slog.Logger
	dir   string // of the sandbox, for the files of this cluster
	vpc   *vpc
	nodes []*Node

	mu        sync.Mutex
	sandboxes map[string]*podSandbox // by sandbox id
}

// Hooks are what a caller wants to know while a lab starts. The zero value is silent.
type Hooks struct {
	Log      *slog.Logger
	Progress func(format string, args ...any)
}

// New starts a lab and returns when its nodes are ready for pods. The spec is completed. On an error nothing is left.
func New(ctx context.Context, spec Spec, hooks Hooks) (*Cluster, error) {
	if !sandbox.Inside() {
		return nil, errors.New("a lab runs in a sandbox only")
	}
	if err := spec.Complete(); err != nil {
		return nil, err
	}
	if hooks.Log == nil {
		hooks.Log = slog.New(slog.DiscardHandler)
	}
	if hooks.Progress == nil {
		hooks.Progress = func(string, ...any) {}
	}
	if !spec.NoIPAMD {
		if err := checkBinaries(spec.BinDir); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(sandbox.StateDir, 0o755); err != nil {
		return nil, err
	}
	// One sandbox can have several clusters, as in tests, with nodes of the same names.
	dir, err := os.MkdirTemp(sandbox.StateDir, spec.Name+"-")
	if err != nil {
		return nil, err
	}
	v, err := newVPC(spec, hooks.Log)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	c := &Cluster{spec: spec, log: hooks.Log, dir: dir, vpc: v, sandboxes: map[string]*podSandbox{}}
	if err := c.start(ctx, hooks.Progress); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context, progress func(string, ...any)) error {
	if err := os.Mkdir(c.share(), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(c.CAPath(), c.vpc.ca.PEM(), 0o644); err != nil {
		return err
	}
	progress("VPC %s with %d subnets; EC2 at %s, IMDS at http://%s", c.vpc.id, len(c.spec.Subnets), Endpoint, fabric.IMDSAddr)
	for _, s := range c.spec.Nodes {
		n, err := c.launch(s)
		if err != nil {
			return err
		}
		c.nodes = append(c.nodes, n)
	}
	group, groupCtx := errgroup.WithContext(ctx)
	for _, n := range c.nodes {
		group.Go(func() error {
			if err := n.boot(groupCtx); err != nil {
				return err
			}
			progress("node %s: %s, %s, %s in %s", n.Name, n.spec.Type, n.InstanceID, n.Address, n.spec.Subnet)
			if c.spec.NoIPAMD {
				return nil
			}
			if err := n.installCNI(); err != nil {
				return err
			}
			if err := n.StartIPAMD(groupCtx); err != nil {
				return err
			}
			progress("node %s: ipamd is healthy", n.Name)
			return nil
		})
	}
	return group.Wait()
}

// Close ends the lab's nodes and network.
func (c *Cluster) Close() error {
	var errs []error
	for _, n := range c.nodes {
		if n.os != nil {
			errs = append(errs, n.os.Kill())
		}
	}
	c.mu.Lock()
	for _, s := range c.sandboxes {
		s.closeNS()
	}
	clear(c.sandboxes)
	c.mu.Unlock()
	return errors.Join(append(errs, c.vpc.close(), os.RemoveAll(c.dir))...)
}

// share is the directory that every node sees as shareDir.
func (c *Cluster) share() string { return filepath.Join(c.dir, "share") }

// CAPath is the sandbox's path of the certificate of the lab's authority.
func (c *Cluster) CAPath() string { return filepath.Join(c.share(), caName) }

// Spec is what the lab was made from, completed.
func (c *Cluster) Spec() Spec { return c.spec }

// Cloud is the lab's EC2.
func (c *Cluster) Cloud() *ec2.Cloud { return c.vpc.cloud }

// IMDS is the lab's instance metadata service.
func (c *Cluster) IMDS() *imds.Server { return c.vpc.imds }

// Fabric is the lab's network.
func (c *Cluster) Fabric() *fabric.Fabric { return c.vpc.fabric }

// VPCID is the id of the lab's VPC.
func (c *Cluster) VPCID() string { return c.vpc.id }

// SubnetID is the id of a subnet of the spec; empty if there is none of that name.
func (c *Cluster) SubnetID(name string) string { return c.vpc.subnets[name] }

// AddCIDR associates one more range with the VPC while it runs.
func (c *Cluster) AddCIDR(cidr netip.Prefix) error {
	if err := c.vpc.cloud.AddVPCCIDR(c.vpc.id, cidr); err != nil {
		return fmt.Errorf("add %s to the vpc: %w", cidr, err)
	}
	return nil
}

// Nodes are the lab's nodes in the spec's order.
func (c *Cluster) Nodes() []*Node { return slices.Clone(c.nodes) }

// Node finds a node by name or instance id.
func (c *Cluster) Node(name string) (*Node, error) {
	names := make([]string, 0, len(c.nodes))
	for _, n := range c.nodes {
		if n.Name == name || n.InstanceID == name {
			return n, nil
		}
		names = append(names, n.Name)
	}
	return nil, fmt.Errorf("there is no node %q; nodes are %v", name, names)
}
