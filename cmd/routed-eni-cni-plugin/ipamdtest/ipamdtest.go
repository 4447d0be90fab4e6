// Package ipamdtest is an ipamd for tests and benchmarks of the plugin: it hands out addresses of a range from memory,
// with ipamd's promises (the same sandbox gets the same address, an unknown sandbox is an error) and none of its work.
package ipamdtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"vpccni/cmd/routed-eni-cni-plugin/plugin"
	"vpccni/pkg/networkutils/names"
	"vpccni/rpc"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// Config is how the server answers. The zero value gives 10.0.0.1 and upwards from the primary ENI.
type Config struct {
	// First is the first address.
	First netip.Addr
	// First6, if set, is the first IPv6 address that a pod gets beside its IPv4 address.
	First6 netip.Addr
	// Tables are the route tables of the ENIs, by device index; addresses come from them in turn.
	Tables []int
	// Cards are the route tables of the ENIs on further network cards, for pods that want an interface on each.
	Cards []int
	// PolicyMode is the reply's NetworkPolicyMode.
	PolicyMode string
	// Refusal, if it has a code, is the answer to every ADD.
	Refusal struct{ Code, Reason string }
	// Answer, if set, is called with each ADD before the answer is sent.
	Answer func(*rpc.AddNetworkRequest)
	// DelError, if set, is the error of every DEL.
	DelError string
	// Edit and EditFor, if set, may change a reply before it is sent.
	Edit    func(*rpc.AddNetworkReply)
	EditFor func(*rpc.AddNetworkRequest, *rpc.AddNetworkReply)
	// Branch, if it has a VLAN, is the branch ENI of every pod.
	Branch Branch
}

// Branch is a branch ENI as replies describe it.
type Branch struct {
	VLAN         int32
	MAC, Gateway string
	Trunk        int32 // index of the trunk ENI's link
}

// Fill makes the reply that of a pod on the branch ENI.
func (b Branch) Fill(reply *rpc.AddNetworkReply) {
	reply.PodVlanId, reply.PodENIMAC, reply.PodENISubnetGW, reply.ParentIfIndex = b.VLAN, b.MAC, b.Gateway, b.Trunk
	for _, m := range reply.GetIPAllocationMetadata() {
		m.DeviceNumber, m.RouteTableId = -1, 0
	}
}

// Server serves rpc.CNIBackend on the plugin's socket.
type Server struct {
	rpc.UnimplementedCNIBackendServer
	grpc *grpc.Server
	done chan struct{}

	mu       sync.Mutex
	conf     Config
	next     netip.Addr
	next6    netip.Addr
	held     map[string][]*rpc.IPAllocationMetadata
	adds     []*rpc.AddNetworkRequest
	dels     []*rpc.DelNetworkRequest
	versions []string
}

// Start serves on the real socket of this mount namespace.
func Start(conf Config) (*Server, error) {
	listener, err := Listen(names.IPAMDSocket)
	if err != nil {
		return nil, err
	}
	if !conf.First.IsValid() {
		conf.First = netip.MustParseAddr("10.0.0.1")
	}
	if len(conf.Tables) == 0 {
		conf.Tables = []int{names.TableMain}
	}
	s := &Server{
		grpc: grpc.NewServer(),
		done: make(chan struct{}),
		conf: conf,
		next: conf.First, next6: conf.First6,
		held: map[string][]*rpc.IPAllocationMetadata{},
	}
	rpc.RegisterCNIBackendServer(s.grpc, s)
	go func() {
		defer close(s.done)
		_ = s.grpc.Serve(listener)
	}()
	return s, nil
}

// Listen opens a unix socket in place of whatever a dead server left.
func Listen(socket string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(socket); err != nil {
		return nil, err
	}
	return net.Listen("unix", socket)
}

// Stop ends the server and removes its socket; what it gave out is forgotten.
func (s *Server) Stop() {
	s.grpc.Stop()
	<-s.done
}

// Configure changes the answers from now on. First and First6 have no effect.
func (s *Server) Configure(change func(*Config)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.conf)
}

// AddNetwork gives the sandbox its address.
func (s *Server) AddNetwork(ctx context.Context, request *rpc.AddNetworkRequest) (*rpc.AddNetworkReply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conf.Answer != nil {
		defer s.conf.Answer(request)
	}
	s.adds = append(s.adds, request)
	s.versions = append(s.versions, metadata.ValueFromIncomingContext(ctx, plugin.VersionKey)...)
	if request.GetClientVersion() != "" {
		return nil, fmt.Errorf("client version %q on the wire", request.GetClientVersion())
	}
	if s.conf.Refusal.Code != "" {
		return &rpc.AddNetworkReply{Code: s.conf.Refusal.Code, Reason: s.conf.Refusal.Reason}, nil
	}
	key := key(request)
	held := s.held[key]
	if held == nil {
		device := len(s.held) % len(s.conf.Tables)
		held = append(held, s.allocate(device, s.conf.Tables[device]))
		if request.GetRequiresMultiNICAttachment() {
			for _, table := range s.conf.Cards {
				held = append(held, s.allocate(0, table))
			}
		}
		s.held[key] = held
	}
	reply := &rpc.AddNetworkReply{
		Success:              true,
		IPAllocationMetadata: clone(held),
		NetworkPolicyMode:    s.conf.PolicyMode,
	}
	if s.conf.Branch.VLAN != 0 {
		s.conf.Branch.Fill(reply)
	}
	if s.conf.Edit != nil {
		s.conf.Edit(reply)
	}
	if s.conf.EditFor != nil {
		s.conf.EditFor(request, reply)
	}
	return reply, nil
}

// DelNetwork takes the sandbox's address back.
func (s *Server) DelNetwork(_ context.Context, request *rpc.DelNetworkRequest) (*rpc.DelNetworkReply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dels = append(s.dels, request)
	if s.conf.DelError != "" {
		return nil, errors.New(s.conf.DelError)
	}
	held := s.held[key(request)]
	if held == nil {
		return nil, errors.New("datastore: unknown pod")
	}
	delete(s.held, key(request))
	return &rpc.DelNetworkReply{
		Success:              true,
		IPAllocationMetadata: clone(held),
		NetworkPolicyMode:    s.conf.PolicyMode,
		PodVlanId:            s.conf.Branch.VLAN,
	}, nil
}

// allocate takes the next address, or one of each family.
func (s *Server) allocate(device, table int) *rpc.IPAllocationMetadata {
	m := &rpc.IPAllocationMetadata{DeviceNumber: int32(device), RouteTableId: int32(table)}
	if s.next.Is4() {
		m.IPv4Addr = s.next.String()
	} else {
		m.IPv6Addr = s.next.String()
	}
	s.next = s.next.Next()
	if s.next6.IsValid() {
		m.IPv6Addr = s.next6.String()
		s.next6 = s.next6.Next()
	}
	return m
}

// clone keeps what a test edits in a reply out of what is held.
func clone(held []*rpc.IPAllocationMetadata) []*rpc.IPAllocationMetadata {
	var list []*rpc.IPAllocationMetadata
	for _, m := range held {
		list = append(list, &rpc.IPAllocationMetadata{
			IPv4Addr: m.GetIPv4Addr(), IPv6Addr: m.GetIPv6Addr(), DeviceNumber: m.GetDeviceNumber(), RouteTableId: m.GetRouteTableId(),
		})
	}
	return list
}

func key(request interface {
	GetNetworkName() string
	GetContainerID() string
	GetIfName() string
}) string {
	return request.GetNetworkName() + "/" + request.GetContainerID() + "/" + request.GetIfName()
}

// Held is how many sandboxes hold an address.
func (s *Server) Held() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held)
}

// Adds are the ADD requests so far.
func (s *Server) Adds() []*rpc.AddNetworkRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*rpc.AddNetworkRequest(nil), s.adds...)
}

// Dels are the DEL requests so far.
func (s *Server) Dels() []*rpc.DelNetworkRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*rpc.DelNetworkRequest(nil), s.dels...)
}

// Versions are the plugin versions in the metadata of the ADDs so far.
func (s *Server) Versions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.versions...)
}
