package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// podInterface is the name of a pod's interface, as Kubernetes' runtimes have it.
const podInterface = "eth0"

// add makes the namespace and runs the chain.
func (s *podSandbox) add(ctx context.Context) error {
	list, err := s.node.cniConfig()
	if err != nil {
		return err
	}
	ns, err := s.node.os.NewNetNS(s.NetNS)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.ns = ns
	s.mu.Unlock()
	started := time.Now()
	return s.node.os.Do(func() error {
		raw, err := s.node.cni().AddNetworkList(ctx, list, s.runtime())
		s.Took = time.Since(started)
		if err != nil {
			return err
		}
		result, err := types100.NewResultFromResult(raw)
		if err != nil {
			return fmt.Errorf("result of the plugins: %w", err)
		}
		return s.take(result)
	})
}

// take notes what the plugins report of the pod's own interface.
func (s *podSandbox) take(result *types100.Result) error {
	for _, ip := range result.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return fmt.Errorf("result of the plugins: address %s", ip.Address.IP)
		}
		ones, _ := ip.Address.Mask.Size()
		s.Addresses = append(s.Addresses, netip.PrefixFrom(addr.Unmap(), ones))
	}
	if len(s.Addresses) == 0 {
		return errors.New("result of the plugins: no address")
	}
	s.Address = s.Addresses[0].Addr()
	return nil
}

// del undoes add, as far as it got.
func (s *podSandbox) del(ctx context.Context) error {
	list, err := s.node.cniConfig()
	if err != nil {
		return err
	}
	err = s.node.os.Do(func() error {
		rt := s.runtime()
		if _, err := os.Stat(s.NetNS); err != nil {
			// What a runtime says of a namespace that is no more.
			rt.NetNS = ""
		}
		return s.node.cni().DelNetworkList(ctx, list, rt)
	})
	if err != nil {
		return err
	}
	s.closeNS()
	return s.node.os.RemoveNetNS(s.NetNS)
}

// runtime is what containerd passes to plugins.
func (s *podSandbox) runtime() *libcni.RuntimeConf {
	capabilities := map[string]any{"io.kubernetes.cri.pod-annotations": map[string]string{}}
	if len(s.HostPorts) > 0 {
		capabilities["portMappings"] = s.HostPorts
	}
	return &libcni.RuntimeConf{
		ContainerID: s.ID, NetNS: s.NetNS, IfName: podInterface,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", s.Namespace},
			{"K8S_POD_NAME", s.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", s.ID},
			{"K8S_POD_UID", s.UID},
		},
		CapabilityArgs: capabilities,
	}
}

func (n *Node) cni() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir([]string{cniBin}, cniCache, nil)
}

// cniConfig reads the first configuration in the node's directory, as runtimes do.
func (n *Node) cniConfig() (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(n.disk(cniConf), []string{".conflist"})
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no CNI configuration in %s of %s: is its CNI up?", cniConf, n.Name)
	}
	slices.Sort(files)
	list, err := libcni.ConfListFromFile(files[0])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.TrimPrefix(files[0], filepath.Clean(n.os.Disk())), err)
	}
	return list, nil
}
