package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"vpccni/lab/ec2"
	"vpccni/lab/fabric"
	"vpccni/lab/node"
	"vpccni/lab/program"
	"vpccni/pkg/networkutils/names"
)

// Files of the CNI on a node.
const (
	ipamdLog  = names.LogDir + "/ipamd.log"
	pluginLog = names.LogDir + "/plugin.log"
	egressLog = names.LogDir + "/egress-v6-plugin.log"
	cniBin    = "/opt/cni/bin"
	cniConf   = "/etc/cni/net.d"
	cniCache  = "/var/lib/cni"
)

// Binaries that nodes run.
const (
	ipamdBinary   = "aws-k8s-agent"
	pluginBinary  = "aws-cni"
	egressBinary  = "egress-cni"
	portmapBinary = "portmap"
)

// Node is an instance of the lab.
type Node struct {
	Name       string
	InstanceID string
	Address    netip.Addr // primary private address
	Address6   netip.Addr // zero in a subnet without IPv6

	spec    NodeSpec
	cluster *Cluster
	os      *node.Node

	starting sync.Mutex // held while ipamd starts, so that it starts once; taken before mu
	mu       sync.Mutex // guards ipamd
	ipamd    *node.Daemon
}

// checkBinaries says what is missing before anything is started.
func checkBinaries(dir string) error {
	for _, name := range []string{ipamdBinary, pluginBinary} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("%s is not in %s: build it (make build), name its directory (--bin-dir), or leave nodes bare (--no-ipamd)",
				name, cmp.Or(dir, "the current directory"))
		}
	}
	return nil
}

// launch has EC2 run the instance. Its interface waits for boot.
func (c *Cluster) launch(spec NodeSpec) (*Node, error) {
	i := slices.IndexFunc(c.spec.Subnets, func(s Subnet) bool { return s.Name == spec.Subnet })
	addresses6 := 0
	if c.spec.Subnets[i].IPv6.IsValid() {
		addresses6 = 1
	}
	instance, err := c.vpc.cloud.RunInstance(ec2.InstanceSpec{
		Type: spec.Type, SubnetID: c.vpc.subnets[spec.Subnet], PrivateIP: spec.Address,
		PublicIP: !c.spec.Subnets[i].Private, IPv6Addresses: addresses6, Tags: map[string]string{"Name": spec.Name},
	})
	if err != nil {
		return nil, fmt.Errorf("run instance %s: %w", spec.Name, err)
	}
	n := &Node{Name: spec.Name, InstanceID: instance.ID, spec: spec, cluster: c}
	for _, e := range c.vpc.cloud.ENIsOf(instance.ID) {
		if e.Attachment.Device == 0 && e.Attachment.Card == 0 {
			n.Address = e.Primary
			if len(e.IPv6) > 0 {
				n.Address6 = e.IPv6[0]
			}
		}
	}
	return n, nil
}

// HostName is the node's host name, as EC2 gives it by default.
func (n *Node) HostName() string { return "ip-" + strings.ReplaceAll(n.Address.String(), ".", "-") }

// boot starts the node's operating system and plugs its ENIs in.
func (n *Node) boot(ctx context.Context) error {
	binds := map[string]string{shareDir: n.cluster.share()}
	if n.cluster.spec.BinDir != "" {
		binds[node.BinDir] = n.cluster.spec.BinDir
	}
	var err error
	n.os, err = node.Start(ctx, node.Options{
		Name: n.HostName(), Disk: filepath.Join(n.cluster.dir, "nodes", n.Name), RPFilter: *n.spec.RPFilter, Binds: binds,
		Sysctls: n.spec.Sysctls,
		Hosts:   n.Address.String() + " " + n.HostName() + "\n",
		Resolv:  "nameserver " + fabric.VPCResolverAddr(n.cluster.spec.CIDRs[0]).String() + "\n",
		Env:     n.awsEnv(),
	})
	if err != nil {
		return err
	}
	return n.plug()
}

func (n *Node) plug() error {
	netns, err := n.os.NetNS()
	if err != nil {
		return err
	}
	defer func() { _ = netns.Close() }()
	if err := n.cluster.vpc.fabric.AddNode(n.InstanceID, netns); err != nil {
		return fmt.Errorf("plug in node %s: %w", n.Name, err)
	}
	return nil
}

// awsEnv is what AWS's SDKs and CLI need on the node. The key comes from IMDS.
func (n *Node) awsEnv() []string {
	region := n.cluster.vpc.cloud.Region()
	return []string{"AWS_ENDPOINT_URL_EC2=" + Endpoint, "AWS_REGION=" + region, "AWS_DEFAULT_REGION=" + region}
}

// InstallCNI puts the plugins and their configuration in place on a node without ipamd, for something that stands in
// for ipamd. The environment is what ipamd's container would have.
func (n *Node) InstallCNI(env map[string]string) error {
	if err := n.installCNI(); err != nil {
		return err
	}
	return n.writeConflist(env)
}

// installCNI puts the plugins where the runtime looks for them.
func (n *Node) installCNI() error {
	for _, name := range []string{pluginBinary, egressBinary, portmapBinary} {
		err := program.Copy(filepath.Join(n.cluster.spec.BinDir, name), n.disk(cniBin, name))
		if err != nil && (name == pluginBinary || !errors.Is(err, os.ErrNotExist)) {
			return fmt.Errorf("install %s on %s: %w", name, n.Name, err)
		}
	}
	return nil
}

// disk is where a persistent file of the node is in the sandbox.
func (n *Node) disk(path ...string) string { return filepath.Join(n.os.Disk(), filepath.Join(path...)) }

// OS is the node's operating system: for programs on the node, and functions in its namespaces.
func (n *Node) OS() *node.Node { return n.os }

// Type is the node's instance type.
func (n *Node) Type() string { return n.spec.Type }

// Subnet is the name of the node's subnet.
func (n *Node) Subnet() string { return n.spec.Subnet }

// Kill cuts the node's power: ipamd and all pods are gone at once. Its ENIs stay attached.
func (n *Node) Kill() error {
	n.cluster.vpc.fabric.RemoveNode(n.InstanceID)
	err := n.os.Kill()
	n.cluster.losePods(n)
	return err
}

// Boot starts a node whose power was cut, and ipamd on it if the lab has one.
func (n *Node) Boot(ctx context.Context) error {
	if err := n.os.Boot(ctx); err != nil {
		return err
	}
	if err := n.plug(); err != nil {
		return err
	}
	if n.cluster.spec.NoIPAMD {
		return nil
	}
	return n.StartIPAMD(ctx)
}
