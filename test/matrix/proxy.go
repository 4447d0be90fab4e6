package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vpccni/lab/cluster"
	"vpccni/lab/kubeapi"
	"vpccni/lab/node"
	"vpccni/lab/probe"
)

const (
	proxyBinary  = "kube-proxy"
	proxyDir     = "/run/kube-proxy"
	apiAddress   = "127.0.0.1:6443" // of n1
	readyTimeout = time.Minute
)

// proxyResources are what kube-proxy watches besides nodes.
var proxyResources = []kubeapi.Resource{
	{Version: "v1", Name: "services", Kind: "Service", Namespaced: true},
	{Group: "discovery.k8s.io", Version: "v1", Name: "endpointslices", Kind: "EndpointSlice", Namespaced: true},
	{Group: "networking.k8s.io", Version: "v1", Name: "servicecidrs", Kind: "ServiceCIDR"},
}

// startProxy starts the API's stand-in and kube-proxy on n1, and returns when every Service has its rules.
func (b *bed) startProxy(ctx context.Context) error {
	if err := b.startAPI(); err != nil {
		return err
	}
	mode := proxyNative
	if b.setUp.Proxy != proxyNative {
		mode = "iptables"
	}
	bind := "0.0.0.0"
	if b.setUp.IPv6 {
		bind = "::"
	}
	files := map[string]string{
		"config": fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: %s/kubeconfig, contentType: application/json, acceptContentTypes: application/json}
mode: %s
hostnameOverride: %s
bindAddress: "%s"
oomScoreAdj: 0
nodePortAddresses: ["0.0.0.0/0", "::/0"]
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s, udpTimeout: 0s, udpStreamTimeout: 0s}
iptables: {minSyncPeriod: 100ms, syncPeriod: 30s, localhostNodePorts: false}
nftables: {minSyncPeriod: 100ms, syncPeriod: 30s}
`, proxyDir, mode, b.n1.HostName(), bind),
		"kubeconfig": fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "http://%s"}}]
contexts: [{name: lab, context: {cluster: lab, user: proxy}}]
current-context: lab
users: [{name: proxy, user: {}}]
`, apiAddress),
	}
	err := b.n1.OS().Do(func() error {
		if err := os.MkdirAll(proxyDir, 0o755); err != nil {
			return err
		}
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(proxyDir, name), []byte(text), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	d, err := b.n1.OS().StartDaemon(proxyBinary, nil, filepath.Join(node.BinDir, proxyBinary), "--config="+proxyDir+"/config", "--v=2")
	if err != nil {
		return err
	}
	b.stop = append(b.stop, d.Kill)
	if err := b.awaitProxy(ctx, d); err != nil {
		return fmt.Errorf("kube-proxy: %w\n%s", err, lastLines(d.Log(), 15))
	}
	return nil
}

// awaitProxy asks every Service from the node, where nothing but kube-proxy is in the way, until all answer.
func (b *bed) awaitProxy(ctx context.Context, d *node.Daemon) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, errors.New("not all Services answer on the node itself"))
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for _, svc := range b.world.services() {
		target := netip.AddrPortFrom(svc.clusters, servicePort)
		for {
			_, err := probe.TCP(ctx, b.n1.OS().Do, target, 1, probe.Timeout(500*time.Millisecond))
			if err == nil {
				break
			}
			select {
			case <-tick.C:
			case <-d.Done():
				return fmt.Errorf("it ended: %w", d.Err())
			case <-ctx.Done():
				return fmt.Errorf("%w: %w", context.Cause(ctx), err)
			}
		}
	}
	return nil
}

// checkBackend says in which of the kernel's packet filters kube-proxy's rules are, and that they are in no other one.
func (b *bed) checkBackend(ctx context.Context) (string, error) {
	var found []string
	save, family := "iptables-save", "ip"
	if b.setUp.IPv6 {
		save, family = "ip6tables-save", "ip6"
	}
	for _, at := range []struct{ backend, command, sign string }{
		{proxyLegacy, "/usr/sbin/xtables-legacy-multi " + save + " -t nat", ":KUBE-SERVICES "},
		{proxyNFT, "nft list ruleset " + family, "chain KUBE-SERVICES "},
		{proxyNative, "nft list ruleset " + family, "table " + family + " kube-proxy "},
	} {
		out, err := run(ctx, b.n1, "", "sh", "-c", at.command)
		if err != nil {
			return "", err
		}
		if strings.Contains(out, at.sign) {
			found = append(found, at.backend)
		}
	}
	if !slices.Equal(found, []string{b.setUp.Proxy}) {
		return "", fmt.Errorf("they are in %v", found)
	}
	return b.setUp.Proxy, nil
}

// startAPI serves what kube-proxy watches, on n1's own loopback.
func (b *bed) startAPI() error {
	var door net.Listener
	if err := b.n1.OS().Do(func() (err error) { door, err = net.Listen("tcp", apiAddress); return err }); err != nil {
		return err
	}
	api := kubeapi.New(kubeapi.Options{Resources: proxyResources})
	for _, o := range apiObjects(b.world, b.cluster.Nodes()) {
		api.Put(o.resource, o.object)
	}
	server := &http.Server{Handler: api.Handler(), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(door) }()
	b.stop = append(b.stop, func() { _ = server.Close() })
	return nil
}

type apiObject struct {
	resource string
	object   kubeapi.Object
}

// apiObjects are the nodes, and each Service with its EndpointSlice.
func apiObjects(w world, nodes []*cluster.Node) []apiObject {
	var list []apiObject
	hosts := map[string]string{}
	family := "IPv4"
	for _, n := range nodes {
		hosts[n.Name] = n.HostName()
		address := n.Address
		if w.n1.addr.Is6() {
			family, address = "IPv6", n.Address6
		}
		list = append(list, apiObject{"nodes", kubeapi.Object{
			"metadata": kubeapi.Object{"name": n.HostName()},
			"status":   kubeapi.Object{"addresses": []any{kubeapi.Object{"type": "InternalIP", "address": address.String()}}},
		}})
	}
	for _, svc := range w.services() {
		policy := "Cluster"
		if svc.local {
			policy = "Local"
		}
		var ports, targets []any
		for i, protocol := range []string{"TCP", "UDP"} {
			name := []string{"t", "u"}[i]
			ports = append(ports, kubeapi.Object{"name": name, "protocol": protocol, "port": servicePort, "targetPort": probePort, "nodePort": svc.nodePort})
			targets = append(targets, kubeapi.Object{"name": name, "protocol": protocol, "port": probePort})
		}
		endpoint := kubeapi.Object{"addresses": []any{svc.endpoint.addr.String()}, "conditions": kubeapi.Object{"ready": true, "serving": true}}
		if svc.node != "" {
			endpoint["nodeName"] = hosts[svc.node]
		}
		list = append(list,
			apiObject{"services", kubeapi.Object{
				"metadata": kubeapi.Object{"name": svc.name, "namespace": namespace},
				"spec": kubeapi.Object{"type": "NodePort", "clusterIP": svc.clusters.String(), "clusterIPs": []any{svc.clusters.String()},
					"ipFamilies": []any{family}, "externalTrafficPolicy": policy, "internalTrafficPolicy": "Cluster",
					"sessionAffinity": "None", "ports": ports},
			}},
			apiObject{"endpointslices", kubeapi.Object{
				"metadata":    kubeapi.Object{"name": svc.name + "-1", "namespace": namespace, "labels": kubeapi.Object{"kubernetes.io/service-name": svc.name}},
				"addressType": family, "ports": targets, "endpoints": []any{endpoint},
			}})
	}
	return list
}

// run runs a program on a node and returns what it printed.
func run(ctx context.Context, n *cluster.Node, input, name string, args ...string) (string, error) {
	cmd := n.OS().Command(ctx, name, args...)
	cmd.Stdin = bytes.NewReader([]byte(input))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %q on %s: %w\n%s", name, args, n.Name, err, out)
	}
	return string(out), nil
}
