package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"vpccni/cmd/routed-eni-cni-plugin/ipamdtest"
	"vpccni/rpc"

	"google.golang.org/grpc"
)

// agent is a network policy agent.
type agent struct {
	rpc.UnimplementedNPBackendServer
	mu    sync.Mutex
	calls []string
	deny  bool
}

func (a *agent) EnforceNpToPod(_ context.Context, r *rpc.EnforceNpRequest) (*rpc.EnforceNpReply, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = append(a.calls, fmt.Sprintf("enforce %s/%s %s %d", r.GetK8S_POD_NAMESPACE(), r.GetK8S_POD_NAME(), r.GetNETWORK_POLICY_MODE(), r.GetInterfaceCount()))
	return &rpc.EnforceNpReply{Success: !a.deny}, nil
}

func (a *agent) DeletePodNp(_ context.Context, r *rpc.DeleteNpRequest) (*rpc.DeleteNpReply, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = append(a.calls, fmt.Sprintf("delete %s/%s", r.GetK8S_POD_NAMESPACE(), r.GetK8S_POD_NAME()))
	return &rpc.DeleteNpReply{Success: true}, nil
}

func TestNetworkPolicyAgentIsAsked(t *testing.T) {
	n := newNode(t, ipamdtest.Config{PolicyMode: "strict"})
	s := n.sandbox("c1", "web-0")
	if _, message := n.mustFail("ADD", s); !strings.Contains(message, "add cmd: failed to setup network policy") {
		t.Errorf("ADD without the agent: %s", message)
	}
	listener, err := ipamdtest.Listen("/var/run/aws-node/npa.sock")
	if err != nil {
		t.Fatal(err)
	}
	a, server := &agent{deny: true}, grpc.NewServer()
	rpc.RegisterNPBackendServer(server, a)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() { server.Stop(); <-served }()
	if _, message := n.mustFail("ADD", s); !strings.Contains(message, "failed to setup network policy") {
		t.Errorf("ADD that the agent refuses: %s", message)
	}
	if n.pods() != 0 || n.routes() != "" || n.ipamd.Held() != 0 {
		t.Errorf("left behind: %d veths, %d addresses, routes %q", n.pods(), n.ipamd.Held(), n.routes())
	}
	a.mu.Lock()
	a.deny = false
	a.mu.Unlock()
	n.mustRun("ADD", s)
	n.mustRun("DEL", s)
	want := []string{"enforce default/web-0 strict 1", "enforce default/web-0 strict 1", "delete default/web-0"}
	if fmt.Sprint(a.calls) != fmt.Sprint(want) {
		t.Errorf("the agent was told %q", a.calls)
	}
}
