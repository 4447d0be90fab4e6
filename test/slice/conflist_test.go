package slice

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vpccni/lab/program"
	"vpccni/pkg/networkutils/names"
)

// chained stands in for a plugin that somebody else has added to the list: it keeps what those before it said.
const chained = `#!/bin/sh
conf=$(cat)
case $CNI_COMMAND in
ADD) printf '%s' "$conf" | sed 's/.*"prevResult":\({.*}\),"type".*/\1/' ;;
esac
echo "$CNI_COMMAND" >>/var/log/chained.log
`

// TestConflistExtendedByOthers: Istio and Cilium add a plugin of theirs to our network list. Pods pass it, and a start of
// ours leaves it there; a start that has nothing new to say leaves the file alone.
func TestConflistExtendedByOthers(t *testing.T) {
	t.Parallel()
	l := lab(t, one(100*time.Millisecond, nil))
	n := l.Nodes()[0]
	file := filepath.Join(n.OS().Disk(), names.ConflistFile)
	read := func() map[string]any {
		t.Helper()
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var list map[string]any
		if err := json.Unmarshal(text, &list); err != nil {
			t.Fatal(err)
		}
		return list
	}
	if err := program.Write(filepath.Join(n.OS().Disk(), "/opt/cni/bin/istio-cni"), strings.NewReader(chained)); err != nil {
		t.Fatal(err)
	}
	list := read()
	list["plugins"] = append(list["plugins"].([]any), map[string]any{
		"type": "istio-cni", "log_level": "info", "kubernetes": map[string]any{"exclude_namespaces": []string{"istio-system"}},
	})
	text, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}

	var before os.FileInfo
	for i := range 3 {
		if _, err := l.PodAdd(t.Context(), "n1", namespace, podName(i)); err != nil {
			t.Fatal(err)
		}
		if err := n.StopIPAMD(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := n.StartIPAMD(t.Context()); err != nil {
			t.Fatal(err)
		}
		var types []string
		for _, p := range read()["plugins"].([]any) {
			types = append(types, p.(map[string]any)["type"].(string))
		}
		if !slices.Contains(types, "aws-cni") || types[len(types)-1] != "istio-cni" {
			t.Errorf("start %d leaves %q", i, types)
		}
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if before != nil && !os.SameFile(before, info) {
			t.Errorf("start %d has written the file again", i)
		}
		before = info
	}
	for i := range 3 {
		if err := l.PodDel(t.Context(), "n1", namespace, podName(i)); err != nil {
			t.Error(err)
		}
	}
	log, err := os.ReadFile(filepath.Join(n.OS().Disk(), "/var/log/chained.log"))
	if err != nil || strings.Count(string(log), "ADD") != 3 || strings.Count(string(log), "DEL") != 3 {
		t.Errorf("the plugin behind ours was called %q, %v", log, err)
	}
}
