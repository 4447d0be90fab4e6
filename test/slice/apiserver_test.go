package slice

import (
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"vpccni/lab/kubeapi"
)

const apiAddress = "127.0.0.1:6443"

// TestAPIServer: pods get addresses while nothing listens at the API server's address, while something does that never
// answers, and after that the node's max-pods and events are there by themselves.
func TestAPIServer(t *testing.T) {
	t.Parallel()
	l := lab(t, one(100*time.Millisecond, map[string]string{"CLUSTER_ENDPOINT": "http://" + apiAddress, "WARM_ENI_TARGET": "0"}))
	n := l.Nodes()[0]
	served := func(pod, when string) {
		t.Helper()
		if _, err := l.PodAdd(t.Context(), "n1", namespace, pod); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	served("pod01", "nothing listens")
	eventually(t, time.Minute, "the absence is told of", func() bool {
		return strings.Contains(n.IPAMDLog(), "feature degraded") && strings.Contains(n.IPAMDLog(), "connection refused")
	})

	n.KillIPAMD()
	var door net.Listener
	if err := n.OS().Do(func() (err error) { door, err = net.Listen("tcp", apiAddress); return err }); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	if err := n.StartIPAMD(t.Context()); err != nil {
		t.Fatal(err)
	}
	served("pod02", "an API server that hangs")
	t.Logf("an API server that hangs: from the start of ipamd to a pod with an address %s", time.Since(started).Round(time.Millisecond))

	api := kubeapi.New(kubeapi.Options{})
	api.Put("nodes", kubeapi.Object{"metadata": kubeapi.Object{"name": n.HostName()},
		"status": kubeapi.Object{"capacity": kubeapi.Object{"pods": "110"}}})
	server := &http.Server{Handler: api.Handler()}
	go func() { _ = server.Serve(door) }()
	defer server.Close()
	eventually(t, 2*time.Minute, "max-pods is known", func() bool { return strings.Contains(n.IPAMDLog(), `"max_pods":110`) })
	// A t3.medium has addresses for 17.
	eventually(t, time.Minute, "a warning", func() bool { return len(api.List("events")) == 1 })
	if e := api.List("events")[0]; e["reason"] != "MaxPodsTooHigh" {
		t.Errorf("event %v", e)
	}
	for _, action := range []string{"update", "delete", "patch"} {
		if got := api.Count(action, "nodes"); got > 0 {
			t.Errorf("%d times %s of nodes", got, action)
		}
	}
}
