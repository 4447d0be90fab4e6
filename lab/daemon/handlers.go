package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"vpccni/lab/cluster"
	"vpccni/lab/control"
	"vpccni/lab/ec2"
)

// podsAtOnce bounds the ADDs and DELs of one request that run at the same time.
const podsAtOnce = 32

// logLimit is how much of a log is shown, in bytes. All of it is in the node's files.
const logLimit = 16 << 20

func (l *lab) handlers() map[string]control.Handler {
	return map[string]control.Handler{
		MethodReady:    l.ready,
		MethodDown:     l.down,
		MethodStatus:   with(l, l.status),
		MethodExec:     l.exec,
		MethodPodAdd:   with(l, l.podAdd),
		MethodPodDel:   with(l, l.podDel),
		MethodPodList:  with(l, l.podList),
		MethodFaultAdd: with(l, l.faultAdd),
		MethodFaultDel: with(l, l.faultRemove),
		MethodFaults:   with(l, l.faults),
		MethodRequests: with(l, l.requests),
		MethodEnv:      with(l, l.env),
		MethodLogs:     with(l, l.logs),
		MethodIPAMD:    with(l, l.ipamd),
		MethodNode:     with(l, l.node),
		MethodAddCIDR:  with(l, l.addCIDR),
	}
}

// with makes a handler of a function on a running cluster.
func with[P any](l *lab, f func(context.Context, *cluster.Cluster, P) (any, error)) control.Handler {
	return func(ctx context.Context, call *control.Call) (any, error) {
		var p P
		if err := call.Params(&p); err != nil {
			return nil, err
		}
		c, err := l.running(ctx)
		if err != nil {
			return nil, err
		}
		return f(ctx, c, p)
	}
}

type none struct{}

func (l *lab) down(context.Context, *control.Call) (any, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end()
	return Ready{PID: l.pid}, nil
}

func (l *lab) status(_ context.Context, c *cluster.Cluster, _ none) (any, error) {
	drops, err := c.Fabric().Drops()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	s := Status{Name: l.spec.Name, PID: l.pid, Since: l.since, VPC: c.VPCID(), Endpoints: l.endpoints,
		Pods: c.Pods(""), Broken: c.Broken(), Drops: []DropStatus{}}
	l.mu.Unlock()
	if v, ok := c.Cloud().VPC(c.VPCID()); ok {
		s.CIDRs = v.CIDRs
	}
	for _, d := range drops {
		s.Drops = append(s.Drops, DropStatus{Cause: string(d.Cause), ENI: d.ENI, Instance: d.Instance,
			Source: d.Source, Destination: d.Destination, Packets: d.Packets})
	}
	for _, sub := range c.Spec().Subnets {
		id := c.SubnetID(sub.Name)
		s.Subnets = append(s.Subnets, SubnetStatus{Name: sub.Name, ID: id, CIDR: sub.CIDR, Zone: sub.Zone,
			Public: !sub.Private, Free: c.Cloud().FreeAddresses(id)})
	}
	for _, n := range c.Nodes() {
		s.Nodes = append(s.Nodes, nodeStatus(c, n))
	}
	return s, nil
}

func nodeStatus(c *cluster.Cluster, n *cluster.Node) NodeStatus {
	s := NodeStatus{Name: n.Name, Instance: n.InstanceID, Type: n.Type(), Subnet: n.Subnet(), Address: n.Address,
		Running: n.OS().Running(), IPAMD: "stopped", Pods: len(c.Pods(n.Name))}
	switch {
	case c.Spec().NoIPAMD:
		s.IPAMD = "none"
	case n.IPAMDRunning():
		s.IPAMD = "running"
	}
	if i, ok := c.Cloud().Instance(n.InstanceID); ok {
		s.PublicIP = i.PublicIP
	}
	for _, e := range c.Cloud().ENIsOf(n.InstanceID) {
		s.ENIs++
		s.Addresses += len(e.Secondary) + 16*len(e.Prefixes)
	}
	return s
}

func (l *lab) podList(_ context.Context, c *cluster.Cluster, p PodRef) (any, error) {
	if p.Node != "" {
		if _, err := c.Node(p.Node); err != nil {
			return nil, err
		}
	}
	return c.Pods(p.Node), nil
}

func (p PodRef) names() []string {
	if p.Count <= 0 {
		return []string{p.Name}
	}
	names := make([]string, p.Count)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%d", p.Name, i+1)
	}
	return names
}

func (l *lab) podAdd(ctx context.Context, c *cluster.Cluster, p PodRef) (any, error) {
	names := p.names()
	pods := make([]cluster.Pod, len(names))
	errs := make([]error, len(names))
	var group errgroup.Group
	group.SetLimit(podsAtOnce)
	for i, name := range names {
		group.Go(func() error {
			pods[i], errs[i] = c.PodAdd(ctx, p.Node, cmp.Or(p.Namespace, "default"), name)
			return nil
		})
	}
	_ = group.Wait()
	return slices.DeleteFunc(pods, func(p cluster.Pod) bool { return p.ID == "" }), errors.Join(errs...)
}

func (l *lab) podDel(ctx context.Context, c *cluster.Cluster, p PodRef) (any, error) {
	doomed := []cluster.Pod{}
	if p.All {
		doomed = c.Pods(p.Node)
	} else {
		for _, name := range p.names() {
			doomed = append(doomed, cluster.Pod{Node: p.Node, Namespace: cmp.Or(p.Namespace, "default"), Name: name})
		}
	}
	errs := make([]error, len(doomed))
	var group errgroup.Group
	group.SetLimit(podsAtOnce)
	for i, pod := range doomed {
		group.Go(func() error {
			errs[i] = c.PodDel(ctx, pod.Node, pod.Namespace, pod.Name)
			return nil
		})
	}
	_ = group.Wait()
	if p.All {
		errs = append(errs, c.CollectGarbage(ctx))
	}
	return none{}, errors.Join(errs...)
}

func (l *lab) faultAdd(_ context.Context, c *cluster.Cluster, f Fault) (any, error) {
	switch {
	case f.EC2 != nil:
		if f.EC2.InstanceID != operator {
			id, err := instanceID(c, f.EC2.InstanceID)
			if err != nil {
				return nil, err
			}
			f.EC2.InstanceID = id
		}
		if sub := c.SubnetID(f.EC2.SubnetID); sub != "" {
			f.EC2.SubnetID = sub
		}
		if err := f.EC2.Validate(); err != nil {
			return nil, err
		}
		return FaultID{ID: c.Cloud().AddFault(*f.EC2)}, nil
	case f.IMDS != nil:
		id, err := instanceID(c, f.IMDS.Instance)
		if err != nil {
			return nil, err
		}
		f.IMDS.Instance = id
		// The two keep their own books; the prefix tells them apart.
		if f.IMDS.ID == "" {
			f.IMDS.ID = fmt.Sprintf("imds-%d", len(c.IMDS().Faults())+1)
		}
		made, err := c.IMDS().AddFault(*f.IMDS)
		return FaultID{ID: made}, err
	default:
		return nil, errors.New("a fault is of EC2 or of IMDS")
	}
}

// operator is the caller with the credentials of vpclab env.
const operator = "operator"

// instanceID takes a node's name for its instance; empty stays empty.
func instanceID(c *cluster.Cluster, name string) (string, error) {
	if name == "" {
		return "", nil
	}
	n, err := c.Node(name)
	if err != nil {
		return "", err
	}
	return n.InstanceID, nil
}

func (l *lab) faultRemove(_ context.Context, c *cluster.Cluster, f FaultID) (any, error) {
	if c.Cloud().RemoveFault(f.ID) || c.IMDS().RemoveFault(f.ID) {
		return none{}, nil
	}
	return nil, fmt.Errorf("there is no fault %q (vpclab fault list)", f.ID)
}

func (l *lab) faults(_ context.Context, c *cluster.Cluster, _ none) (any, error) {
	return Faults{EC2: c.Cloud().Faults(), IMDS: c.IMDS().Faults()}, nil
}

func (l *lab) requests(_ context.Context, c *cluster.Cluster, q RequestsQuery) (any, error) {
	names := map[string]string{}
	for _, n := range c.Nodes() {
		names[n.InstanceID] = n.Name
	}
	r := Requests{EC2: []Count{}, IMDS: []Count{}}
	for _, k := range slices.SortedFunc(maps.Keys(c.Cloud().Counts()), func(a, b ec2.CountKey) int {
		return cmp.Or(cmp.Compare(a.Caller, b.Caller), cmp.Compare(a.Action, b.Action), cmp.Compare(a.Outcome, b.Outcome))
	}) {
		r.EC2 = append(r.EC2, Count{Caller: cmp.Or(names[k.Caller], k.Caller), What: k.Action, Outcome: k.Outcome, Count: c.Cloud().Counts()[k]})
	}
	for k, n := range c.IMDS().Counts() {
		r.IMDS = append(r.IMDS, Count{Caller: cmp.Or(names[k.Instance], k.Instance), What: k.Path, Count: n})
	}
	slices.SortFunc(r.IMDS, func(a, b Count) int { return cmp.Or(cmp.Compare(a.Caller, b.Caller), cmp.Compare(a.What, b.What)) })
	if q.Log {
		r.EC2Log, r.IMDSLog = c.Cloud().Requests(), c.IMDS().Requests()
	}
	if q.Reset {
		c.Cloud().ResetRequests()
		c.IMDS().ResetRequests()
	}
	return r, nil
}

func (l *lab) addCIDR(_ context.Context, c *cluster.Cluster, r CIDR) (any, error) {
	return none{}, c.AddCIDR(r.CIDR)
}

func (l *lab) env(_ context.Context, c *cluster.Cluster, _ none) (any, error) {
	key := c.Cloud().OperatorCredentials()
	l.mu.Lock()
	defer l.mu.Unlock()
	return Env{
		Endpoint: l.endpoints.HTTP, EndpointTLS: l.endpoints.HTTPS, Region: c.Cloud().Region(),
		// The machine sees the sandbox's files through its first process; nothing has to be written outside.
		CABundle:  fmt.Sprintf("/proc/%d/root%s", l.pid, c.CAPath()),
		AccessKey: key.AccessKeyID, SecretKey: key.SecretAccessKey,
	}, nil
}

func (l *lab) logs(_ context.Context, c *cluster.Cluster, q LogsQuery) (any, error) {
	if q.Node == "" {
		// Standard error is a memory file of this process.
		text, err := io.ReadAll(io.NewSectionReader(os.Stderr, 0, 1<<30))
		return string(text), err
	}
	n, err := c.Node(q.Node)
	if err != nil {
		return nil, err
	}
	text := n.IPAMDLog()
	if q.Plugin {
		text = n.PluginLog()
	}
	return text[max(0, len(text)-logLimit):], nil
}

func (l *lab) ipamd(ctx context.Context, c *cluster.Cluster, o Control) (any, error) {
	n, err := c.Node(o.Node)
	if err != nil {
		return nil, err
	}
	if c.Spec().NoIPAMD {
		return nil, errors.New("this lab's nodes are bare (--no-ipamd)")
	}
	switch o.Do {
	case "kill":
		n.KillIPAMD()
		return none{}, nil
	case "stop":
		return none{}, n.StopIPAMD(ctx)
	case "start":
		return none{}, n.StartIPAMD(ctx)
	default:
		return nil, fmt.Errorf("ipamd can be told to %s", strings.Join([]string{"kill", "stop", "start"}, ", "))
	}
}

func (l *lab) node(ctx context.Context, c *cluster.Cluster, o Control) (any, error) {
	n, err := c.Node(o.Node)
	if err != nil {
		return nil, err
	}
	switch o.Do {
	case "kill":
		return none{}, n.Kill()
	case "boot":
		return none{}, n.Boot(ctx)
	case "reboot":
		if err := n.Kill(); err != nil {
			return nil, err
		}
		return none{}, n.Boot(ctx)
	default:
		return nil, fmt.Errorf("a node can be told to %s", strings.Join([]string{"kill", "boot", "reboot"}, ", "))
	}
}
