package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// foreignMarks are bits that another program of the node keeps in the marks of packets and connections.
var foreignMarks = map[string]struct{ mask, value uint32 }{
	marksCalico: {0xffff0000, 0xabcd0000},
	marksCilium: {0x00000f00, 0x00000b00},
}

// markTable sets the bits before every hook of ours (as Calico and Cilium do at mangle's priority) and counts, behind
// all of them, packets that lost them.
const markTable = `table inet foreign {
	counter kept {}
	counter lost_mark {}
	counter lost_ct {}
	chain set_bits {
		meta mark set meta mark & %#[1]x | %#[2]x
		ct mark set ct mark & %#[1]x | %#[2]x
	}
	chain look {
		meta mark & %#[3]x != %#[2]x counter name lost_mark return
		ct mark & %#[3]x != %#[2]x counter name lost_ct return
		counter name kept
	}
	chain pre { type filter hook prerouting priority -151; jump set_bits; }
	chain out { type filter hook output priority -151; jump set_bits; }
	chain post { type filter hook postrouting priority 300; jump look; }
	chain in { type filter hook input priority 300; jump look; }
}
`

// startMarks has another program's marks on n1.
func (b *bed) startMarks(ctx context.Context) error {
	m, ok := foreignMarks[b.setUp.Marks]
	if !ok {
		return nil
	}
	return b.onN1(ctx, fmt.Sprintf(markTable, ^m.mask, m.value, m.mask), "nft", "-f", "-")
}

// checkMarks says whether every packet kept the other program's bits.
func (b *bed) checkMarks(ctx context.Context) (string, error) {
	out, err := run(ctx, b.n1, "", "nft", "-j", "list", "counters", "table", "inet", "foreign")
	if err != nil {
		return "", err
	}
	counts, err := parseCounters(out)
	if err != nil {
		return "", err
	}
	seen := fmt.Sprintf("%d packets kept the bits, %d lost them, %d connections lost them", counts["kept"], counts["lost_mark"], counts["lost_ct"])
	if counts["kept"] == 0 || counts["lost_mark"]+counts["lost_ct"] > 0 {
		return "", errors.New(seen)
	}
	return seen, nil
}

// parseCounters reads the packets of nft's named counters.
func parseCounters(text string) (map[string]uint64, error) {
	var doc struct {
		NFTables []struct {
			Counter *struct {
				Name    string `json:"name"`
				Packets uint64 `json:"packets"`
			} `json:"counter"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		return nil, fmt.Errorf("counters of nft: %w", err)
	}
	counts := map[string]uint64{}
	for _, o := range doc.NFTables {
		if o.Counter != nil {
			counts[o.Counter.Name] = o.Counter.Packets
		}
	}
	return counts, nil
}
