package ipamd

import (
	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/networkutils/hostnet"
	"vpccni/pkg/networkutils/names"
)

var _ hostnet.Pods = (*Daemon)(nil)

// Pods lists the pods that hold an address, for whoever keeps their routes.
func (d *Daemon) Pods() []hostnet.Pod {
	held := d.ctrl.store.Held()
	veths := make(map[string]int, len(held))
	list := make([]hostnet.Pod, 0, len(held))
	for _, a := range held {
		p := hostnet.Pod{Address: a.Address, Sandbox: hostnet.Sandbox(a.Key), Since: a.Time}
		if a.Pod != "" && a.Interfaces <= 1 {
			p.Veth = names.HostVeth(d.ctrl.set.Host.VethPrefix, a.Namespace, a.Pod, 0)
			veths[p.Veth]++
		}
		list = append(list, p)
	}
	for i := range list {
		if veths[list[i].Veth] > 1 {
			list[i].Veth = "" // an older sandbox of the same pod is not gone yet
		}
	}
	return list
}

// Lives reports whether a pod still holds its address. It does from before its ADD is answered until its DEL comes, which
// is answered later.
func (d *Daemon) Lives(p hostnet.Pod) bool {
	a, ok := d.ctrl.store.Lookup(datastore.Key(p.Sandbox))
	return ok && a.Address == p.Address && a.Time.Equal(p.Since)
}

// HostRepaired tells the daemon what somebody else had changed of pods' wiring, and is put right.
func (d *Daemon) HostRepaired(r hostnet.Repair) { d.dispatch(evRepaired{r}) }
