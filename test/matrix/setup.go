package main

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"vpccni/test/matrix/pairs"
)

// The values of a set-up's settings.
const (
	proxyNone   = "none"
	proxyLegacy = "iptables-legacy"
	proxyNFT    = "iptables-nft"
	proxyNative = "nftables"

	snatNode     = "false"      // AWS_VPC_K8S_CNI_EXTERNALSNAT=false: the node translates
	snatExternal = "true"       // the nodes are in private subnets behind a NAT gateway
	snatExcluded = "exclusions" // the node translates, but not towards on-prem

	marksNone   = "none"
	marksCalico = "calico"
	marksCilium = "cilium"

	layoutTables = "tables" // POD_RULE_LAYOUT
	layoutPerPod = "per-pod"
)

// The settings that need a lab of their own, each with its values.
var (
	proxies  = []string{proxyNone, proxyLegacy, proxyNFT, proxyNative}
	snats    = []string{snatNode, snatExternal, snatExcluded}
	rpAlls   = []int{0, 1, 2}
	rpDevs   = []int{0, 1, 2}
	marks    = []string{marksNone, marksCalico, marksCilium}
	srcValid = []int{0, 1}
	layouts  = []string{layoutTables, layoutPerPod}
)

// setUp is a lab in which all paths are checked. Its settings are those of every node; kube-proxy and the marks are on
// n1, whose pods the paths begin and end at.
type setUp struct {
	Name string `json:"name"`
	// IPv6 has pods with IPv6 addresses; of the other settings, kube-proxy and the marks mean something there.
	IPv6      bool   `json:"ipv6"`
	Proxy     string `json:"proxy"`
	SNAT      string `json:"snat"`
	RPAll     int    `json:"rpFilterAll"`
	RPDefault int    `json:"rpFilterDefault"`
	Marks     string `json:"marks"`
	SrcValid  int    `json:"srcValidMark"`
	Layout    string `json:"layout"`
}

// setUps samples the product of the settings so that every two values of two of them meet, in each address family.
func setUps() []setUp {
	var list []setUp
	for i, row := range pairs.Cover(len(proxies), len(snats), len(rpAlls), len(rpDevs), len(marks), len(srcValid), len(layouts)) {
		list = append(list, setUp{
			Name:  fmt.Sprintf("S%d", i+1),
			Proxy: proxies[row[0]], SNAT: snats[row[1]],
			RPAll: rpAlls[row[2]], RPDefault: rpDevs[row[3]],
			Marks: marks[row[4]], SrcValid: srcValid[row[5]], Layout: layouts[row[6]],
		})
	}
	for i, row := range pairs.Cover(len(proxies), len(marks)) {
		list = append(list, setUp{
			Name: fmt.Sprintf("V%d", i+1), IPv6: true,
			Proxy: proxies[row[0]], SNAT: "-", Marks: marks[row[1]], Layout: layoutTables,
		})
	}
	return list
}

// randomSetUps draws further IPv4 set-ups, for what needs more than two particular values at once.
func randomSetUps(n int, seed uint64) []setUp {
	r := rand.New(rand.NewPCG(seed, 0))
	list := make([]setUp, n)
	for i := range list {
		list[i] = setUp{
			Name:  fmt.Sprintf("R%d", i+1),
			Proxy: proxies[r.IntN(len(proxies))], SNAT: snats[r.IntN(len(snats))],
			RPAll: rpAlls[r.IntN(len(rpAlls))], RPDefault: rpDevs[r.IntN(len(rpDevs))],
			Marks: marks[r.IntN(len(marks))], SrcValid: srcValid[r.IntN(len(srcValid))], Layout: layouts[r.IntN(len(layouts))],
		}
	}
	return list
}

func (s setUp) String() string {
	if s.IPv6 {
		return fmt.Sprintf("%s: IPv6, kube-proxy %s, marks %s", s.Name, s.Proxy, s.Marks)
	}
	return fmt.Sprintf("%s: kube-proxy %s, EXTERNALSNAT %s, rp_filter all=%d default=%d, src_valid_mark %d, marks %s, rules %s",
		s.Name, s.Proxy, s.SNAT, s.RPAll, s.RPDefault, s.SrcValid, s.Marks, s.Layout)
}

// public says whether the nodes have public addresses.
func (s setUp) public() bool { return s.SNAT != snatExternal }

// choose returns the set-ups named in a list with commas; all for an empty one.
func choose(all []setUp, names string) ([]setUp, error) {
	if names == "" {
		return all, nil
	}
	var chosen []setUp
	for name := range strings.SplitSeq(names, ",") {
		found := false
		for _, s := range all {
			if strings.EqualFold(s.Name, strings.TrimSpace(name)) {
				chosen, found = append(chosen, s), true
			}
		}
		if !found {
			return nil, fmt.Errorf("there is no set-up %q; see docs/matrix.md", name)
		}
	}
	return chosen, nil
}
