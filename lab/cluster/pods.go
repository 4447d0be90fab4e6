package cluster

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"vpccni/lab/node"
)

// cleanUpTimeout bounds the DEL that follows a failed ADD.
const cleanUpTimeout = 30 * time.Second

// Pod is a pod's sandbox that is ready.
type Pod struct {
	Node      string     `json:"node"`
	Namespace string     `json:"namespace"`
	Name      string     `json:"name"`
	UID       string     `json:"uid"`
	ID        string     `json:"id"` // of the sandbox
	Address   netip.Addr `json:"address"`
	// Addresses are all that the plugins reported, with their prefix lengths.
	Addresses []netip.Prefix `json:"addresses"`
	NetNS     string         `json:"netns"` // path on the node
	HostPorts []HostPort     `json:"hostPorts,omitempty"`
	Took      time.Duration  `json:"took"` // of the ADD
}

// HostPort makes a port of a pod reachable at its node's addresses. The tags are what runtimes pass to portmap.
type HostPort struct {
	Host     int    `json:"hostPort"`
	Pod      int    `json:"containerPort"`
	Protocol string `json:"protocol"` // tcp or udp
}

// podSandbox is a sandbox in any state.
type podSandbox struct {
	Pod
	node  *Node
	state sandboxState
	why   error // of a broken one

	mu sync.Mutex
	ns *os.File // nil once it is gone
}

type sandboxState int

const (
	creating sandboxState = iota
	readyState
	deleting
	// broken sandboxes could not be made, or not be cleaned up, or lost their node's power. A kubelet asks for
	// their DEL until it succeeds; here CollectGarbage or PodDel does.
	broken
)

func (s *podSandbox) closeNS() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ns != nil {
		_ = s.ns.Close()
		s.ns = nil
	}
}

// netns is the pod's network namespace, open until the pod goes.
func (s *podSandbox) netns() (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ns == nil {
		return nil, fmt.Errorf("pod %s/%s on %s is gone", s.Namespace, s.Name, s.node.Name)
	}
	return s.ns, nil
}

// PodAdd makes a pod's sandbox on a node: a network namespace, wired by the node's CNI configuration. Where that
// fails it is cleaned up as a container runtime does, by DEL.
func (c *Cluster) PodAdd(ctx context.Context, nodeName, namespace, name string, ports ...HostPort) (Pod, error) {
	n, err := c.Node(nodeName)
	if err != nil {
		return Pod{}, err
	}
	s, err := c.newSandbox(n, namespace, name)
	if err != nil {
		return Pod{}, err
	}
	s.HostPorts = ports
	err = s.add(ctx)
	if err == nil {
		c.setState(s, readyState, nil)
		return s.Pod, nil
	}
	err = fmt.Errorf("pod %s/%s on %s: %w", namespace, name, n.Name, err)
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTimeout)
	defer cancel()
	if delErr := s.del(clean); delErr != nil {
		c.setState(s, broken, delErr)
		return Pod{}, errors.Join(err, fmt.Errorf("cleaning up: %w", delErr))
	}
	c.forget(s)
	return Pod{}, err
}

// PodDel deletes a pod: DEL of all its sandboxes, also of those that are left of failed attempts. Deleting what is
// gone is no error.
func (c *Cluster) PodDel(ctx context.Context, nodeName, namespace, name string) error {
	n, err := c.Node(nodeName)
	if err != nil {
		return err
	}
	return c.delete(ctx, func(s *podSandbox) bool {
		return s.node == n && s.Namespace == namespace && s.Name == name
	})
}

// CollectGarbage repeats the DEL of sandboxes that are left of failed attempts, as kubelets do.
func (c *Cluster) CollectGarbage(ctx context.Context) error {
	return c.delete(ctx, func(s *podSandbox) bool { return s.state == broken })
}

func (c *Cluster) delete(ctx context.Context, want func(*podSandbox) bool) error {
	c.mu.Lock()
	var chosen []*podSandbox
	var errs []error
	for _, s := range c.sandboxes {
		if !want(s) {
			continue
		}
		if s.state == creating || s.state == deleting {
			errs = append(errs, fmt.Errorf("pod %s/%s on %s is busy", s.Namespace, s.Name, s.node.Name))
			continue
		}
		s.state = deleting
		chosen = append(chosen, s)
	}
	c.mu.Unlock()
	slices.SortFunc(chosen, func(a, b *podSandbox) int { return cmp.Compare(a.ID, b.ID) })
	for _, s := range chosen {
		if err := s.del(ctx); err != nil {
			c.setState(s, broken, err)
			errs = append(errs, fmt.Errorf("pod %s/%s on %s: %w", s.Namespace, s.Name, s.node.Name, err))
			continue
		}
		c.forget(s)
	}
	return errors.Join(errs...)
}

func (c *Cluster) newSandbox(n *Node, namespace, name string) (*podSandbox, error) {
	if namespace == "" || name == "" {
		return nil, errors.New("a pod needs a namespace and a name")
	}
	id := make([]byte, 32)
	_, _ = rand.Read(id) // never fails
	s := &podSandbox{node: n, Pod: Pod{Node: n.Name, Namespace: namespace, Name: name, ID: hex.EncodeToString(id)}}
	s.UID = uuid([16]byte(id))
	s.NetNS = "/run/netns/cni-" + s.UID
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, other := range c.sandboxes {
		if other.node == n && other.Namespace == namespace && other.Name == name && other.state != broken {
			return nil, fmt.Errorf("pod %s/%s is on %s already", namespace, name, n.Name)
		}
	}
	c.sandboxes[s.ID] = s
	return s, nil
}

// uuid makes a random UUID (version 4) of random bytes.
func uuid(b [16]byte) string {
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func (c *Cluster) setState(s *podSandbox, state sandboxState, why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.state, s.why = state, why
}

func (c *Cluster) forget(s *podSandbox) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sandboxes, s.ID)
}

// losePods marks what a power cut has taken.
func (c *Cluster) losePods(n *Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sandboxes {
		if s.node == n {
			s.state, s.why = broken, errors.New("its node lost power")
			s.closeNS()
		}
	}
}

// Pods are the pods that are ready, by node, namespace and name; a node of "" is every node.
func (c *Cluster) Pods(nodeName string) []Pod {
	c.mu.Lock()
	defer c.mu.Unlock()
	pods := []Pod{}
	for _, s := range c.sandboxes {
		if s.state == readyState && (nodeName == "" || s.node.Name == nodeName) {
			pods = append(pods, s.Pod)
		}
	}
	slices.SortFunc(pods, func(a, b Pod) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return pods
}

// Broken says which sandboxes wait for CollectGarbage, and why.
func (c *Cluster) Broken() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []string
	for _, s := range c.sandboxes {
		if s.state == broken {
			list = append(list, fmt.Sprintf("%s %s/%s: %v", s.node.Name, s.Namespace, s.Name, s.why))
		}
	}
	slices.Sort(list)
	return list
}

func (c *Cluster) pod(nodeName, namespace, name string) (*podSandbox, error) {
	n, err := c.Node(nodeName)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sandboxes {
		if s.node == n && s.Namespace == namespace && s.Name == name && s.state == readyState {
			return s, nil
		}
	}
	return nil, fmt.Errorf("there is no pod %s/%s on %s", namespace, name, n.Name)
}

// PodDo runs f on a thread in a pod's network namespace (and its node's other namespaces). Sockets that f opens stay
// in it.
func (c *Cluster) PodDo(nodeName, namespace, name string, f func() error) error {
	s, err := c.pod(nodeName, namespace, name)
	if err != nil {
		return err
	}
	ns, err := s.netns()
	if err != nil {
		return err
	}
	return s.node.os.DoIn(ns, f)
}

// PodCommand prepares a program to run in a pod's network namespace.
func (c *Cluster) PodCommand(ctx context.Context, nodeName, namespace, name, program string, args ...string) (*node.Cmd, error) {
	s, err := c.pod(nodeName, namespace, name)
	if err != nil {
		return nil, err
	}
	ns, err := s.netns()
	if err != nil {
		return nil, err
	}
	return s.node.os.CommandIn(ctx, ns, program, args...), nil
}
