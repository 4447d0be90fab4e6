package conflist

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const stock = `{"cniVersion":"0.4.0","name":"aws-cni","disableCheck":true,"plugins":[{"name":"aws-cni","type":"aws-cni","mtu":"9001"},{"type":"portmap","snat":true}]}`

// As istio-cni and Cilium leave the file: their entry behind ours, and everything indented anew.
const extended = `{
  "cniVersion": "0.4.0", "disableCheck": true, "name": "aws-cni",
  "plugins": [
    {"mtu": "1500", "name": "aws-cni", "type": "aws-cni"},
    {"snat": true, "type": "portmap"},
    {"type": "bandwidth", "capabilities": {"bandwidth": true}},
    {"kubernetes": {"exclude_namespaces": ["istio-system"], "kubeconfig": "/etc/cni/net.d/ZZZ-istio-cni-kubeconfig"}, "log_level": "info", "type": "istio-cni"},
    {"enable-debug": false, "log-file": "/var/run/cilium/cilium-cni.log", "type": "cilium-cni", "threshold": 1e400, "html": "<&>"}
  ]
}`

func types(t *testing.T, text []byte) string {
	t.Helper()
	l, err := parse(text)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, p := range l.plugins {
		list = append(list, typeOf(p))
	}
	return strings.Join(list, " ")
}

func TestForeignEntriesAreKept(t *testing.T) {
	t.Parallel()
	got, err := Merge([]byte(stock), []byte(extended))
	if err != nil {
		t.Fatal(err)
	}
	if list := types(t, got); list != "aws-cni portmap istio-cni cilium-cni" {
		t.Errorf("entries %s\n%s", list, got)
	}
	var flat bytes.Buffer
	if err := json.Compact(&flat, got); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"mtu":"9001"`, // ours is today's
		`{"kubernetes":{"exclude_namespaces":["istio-system"],"kubeconfig":"/etc/cni/net.d/ZZZ-istio-cni-kubeconfig"},"log_level":"info","type":"istio-cni"}`,
		`"threshold":1e400,"html":"<&>"`,
	} {
		if !strings.Contains(flat.String(), want) {
			t.Errorf("%s is missing:\n%s", want, got)
		}
	}
	again, err := Merge([]byte(stock), got)
	if err != nil || !bytes.Equal(again, got) {
		t.Errorf("merging again gives (%v)\n%s\nwant\n%s", err, again, got)
	}
}

func TestNothingToKeep(t *testing.T) {
	t.Parallel()
	want, err := Merge([]byte(stock), nil)
	if err != nil {
		t.Fatal(err)
	}
	for what, present := range map[string]string{
		"empty": "", "cut off": extended[:100], "no object": "[]", "no plugins": `{"name":"aws-cni"}`, "plugins are none": `{"name":"aws-cni","plugins":7}`,
		"another network": strings.Replace(extended, `"name": "aws-cni",`+"\n", `"name": "other",`+"\n", 1), "its own": stock,
	} {
		if got, err := Merge([]byte(stock), []byte(present)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v\n%s", what, err, got)
		}
	}
	if _, err := Merge([]byte("{"), nil); err == nil {
		t.Error("a list of ours that is none was taken")
	}
}

func TestInstall(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "net.d", "10-aws.conflist")
	install := func() os.FileInfo {
		t.Helper()
		if err := Install(path, []byte(stock)); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	first := install()
	if first.Mode() != 0o644 {
		t.Errorf("mode %s", first.Mode())
	}
	if again := install(); !os.SameFile(first, again) || again.ModTime() != first.ModTime() {
		t.Error("a file that has everything was written")
	}
	if err := os.WriteFile(path, []byte(extended), 0o644); err != nil {
		t.Fatal(err)
	}
	second := install()
	if os.SameFile(first, second) {
		t.Error("the file was changed in place")
	}
	if third := install(); !os.SameFile(second, third) {
		t.Error("a merged file was written again")
	}
	if files, _ := os.ReadDir(filepath.Dir(path)); len(files) != 1 {
		t.Errorf("left behind: %v", files)
	}
}

// Whoever reads meanwhile sees a list as a whole, and an entry that is added meanwhile is not lost.
func TestInstallBesideOthers(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "10-aws.conflist")
	if err := Install(path, []byte(stock)); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var readers sync.WaitGroup
	readers.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			text, err := os.ReadFile(path)
			if err != nil || !json.Valid(text) {
				t.Errorf("read %v: %s", err, text)
				return
			}
		}
	})
	for i := range 50 {
		ours := strings.Replace(stock, "9001", []string{"9001", "1500"}[i%2], 1)
		if err := Install(path, []byte(ours)); err != nil {
			t.Error(err)
		}
	}
	close(done)
	readers.Wait()

	present, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Somebody adds an entry between our look and our write.
	if err := os.WriteFile(path, []byte(extended), 0o644); err != nil {
		t.Fatal(err)
	}
	if ok, err := replace(path, present, []byte(stock)); ok || err != nil {
		t.Errorf("a file that has changed was replaced: %t, %v", ok, err)
	}
	if now, err := os.ReadFile(path); err != nil || string(now) != extended {
		t.Errorf("%v\n%s", err, now)
	}
}

func FuzzMerge(f *testing.F) {
	f.Add([]byte(stock))
	f.Add([]byte(extended))
	f.Add([]byte(`{"name":"aws-cni","plugins":[7,{"type":null},null]}`))
	f.Fuzz(func(t *testing.T, present []byte) {
		got, err := Merge([]byte(stock), present)
		if err != nil || !json.Valid(got) {
			t.Fatalf("%v\n%s", err, got)
		}
		if list := types(t, got); !strings.HasPrefix(list, "aws-cni portmap") {
			t.Errorf("entries %s", list)
		}
		if again, err := Merge([]byte(stock), got); err != nil || !bytes.Equal(again, got) {
			t.Errorf("not stable: %v\n%s\n%s", err, got, again)
		}
	})
}
