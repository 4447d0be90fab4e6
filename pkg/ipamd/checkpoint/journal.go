package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// journalVersion changes when a reader of the older version would draw wrong conclusions; members may be added
// under the same version.
const journalVersion = "vpc-cni-journal/1"

// maxJournal bounds what is read: 15 ENIs of 50 addresses, all cooling, take about 100 KiB.
const maxJournal = 8 << 20

// journalJSON is the journal for the reader; the writer is appendJournal.
type journalJSON struct {
	Version    string            `json:"version"`
	InstanceID string            `json:"instanceID"`
	ENIs       []json.RawMessage `json:"enis"`    // of heldJSON
	Cooling    []json.RawMessage `json:"cooling"` // of coolingJSON
	Intents    []json.RawMessage `json:"intents"` // of intentJSON
}

type heldJSON struct {
	ID     string         `json:"id"`
	MAC    string         `json:"mac"`
	Device int            `json:"device"`
	Card   int            `json:"card"`
	Pool   []netip.Prefix `json:"pool"`
	// Empty while the writer did not know them.
	Address    netip.Addr   `json:"address"`
	SubnetID   string       `json:"subnetID"`
	SubnetCIDR netip.Prefix `json:"subnetCIDR"`
	// Left out while there are none.
	Doubted []netip.Prefix `json:"doubted"`
}

type coolingJSON struct {
	Address netip.Addr `json:"address"`
	Until   int64      `json:"until"` // Unix time, ns
}

type intentJSON struct {
	Kind  string `json:"kind"`
	ENI   string `json:"eni"`
	Token string `json:"token"`
	Since int64  `json:"since"` // Unix time, ns
}

// appendJournal formats all of a journal.
func appendJournal(b []byte, j *Journal) []byte { return new(journalEncoder).encode(b, j) }

// appendJournalOf formats a journal whose ENIs are formatted already.
func appendJournalOf(b []byte, j *Journal, enis [][]byte) []byte {
	b = append(b, `{"version":"`+journalVersion+`","instanceID":`...)
	b = appendString(b, j.InstanceID)
	b = append(b, `,"enis":[`...)
	for i, text := range enis {
		b = appendComma(b, i)
		b = append(b, text...)
	}
	b = append(b, `],"cooling":[`...)
	for i, c := range j.Cooling {
		b = appendComma(b, i)
		b = append(b, `{"address":"`...)
		b = c.Address.AppendTo(b)
		b = append(b, `","until":`...)
		b = appendNanos(b, c.Until)
		b = append(b, '}')
	}
	b = append(b, `],"intents":[`...)
	for i, n := range j.Intents {
		b = appendComma(b, i)
		b = append(b, `{"kind":`...)
		b = appendString(b, n.Kind)
		b = append(b, `,"eni":`...)
		b = appendString(b, n.ENI)
		b = append(b, `,"token":`...)
		b = appendString(b, n.Token)
		b = append(b, `,"since":`...)
		b = appendNanos(b, n.Since)
		b = append(b, '}')
	}
	return append(b, "]}\n"...)
}

func appendENI(b []byte, e *HeldENI) []byte {
	b = append(b, `{"id":`...)
	b = appendString(b, e.ID)
	b = append(b, `,"mac":`...)
	b = appendString(b, e.MAC)
	b = append(b, `,"device":`...)
	b = appendInt(b, int64(e.Device))
	b = append(b, `,"card":`...)
	b = appendInt(b, int64(e.Card))
	b = append(b, `,"pool":[`...)
	b = appendRanges(b, e.Pool)
	b = append(b, `],"address":"`...)
	if e.Address.IsValid() {
		b = e.Address.AppendTo(b)
	}
	b = append(b, `","subnetID":`...)
	b = appendString(b, e.SubnetID)
	b = append(b, `,"subnetCIDR":"`...)
	if e.SubnetCIDR.IsValid() {
		b = e.SubnetCIDR.AppendTo(b)
	}
	b = append(b, '"')
	if len(e.Doubted) > 0 {
		b = append(b, `,"doubted":[`...)
		b = appendRanges(b, e.Doubted)
		b = append(b, ']')
	}
	b = append(b, '}')
	return b
}

func appendRanges(b []byte, ranges []netip.Prefix) []byte {
	for i, p := range ranges {
		b = appendComma(b, i)
		b = append(b, '"')
		b = p.AppendTo(b)
		b = append(b, '"')
	}
	return b
}

func appendComma(b []byte, i int) []byte {
	if i > 0 {
		return append(b, ',')
	}
	return b
}

// decodeJournal reads a journal. The error means that nothing of it can be trusted; problems are single members that
// were left out, and why.
func decodeJournal(raw []byte) (j Journal, problems []string, err error) {
	var f journalJSON
	if err := json.Unmarshal(raw, &f); err != nil {
		return Journal{}, nil, fmt.Errorf("decode: %w", err)
	}
	if f.Version != journalVersion {
		return Journal{}, nil, fmt.Errorf("version %q, want %q", f.Version, journalVersion)
	}
	j.InstanceID = f.InstanceID
	leftOut := func(what string, i int, err error) {
		problems = append(problems, fmt.Sprintf("%s %d of the journal left out: %v", what, i, err))
	}
	for i, raw := range f.ENIs {
		var e heldJSON
		err := json.Unmarshal(raw, &e)
		if err == nil && slices.ContainsFunc(slices.Concat(e.Pool, e.Doubted), func(p netip.Prefix) bool { return !p.IsValid() }) {
			err = errors.New("an empty range")
		}
		if err != nil {
			leftOut("ENI", i, err)
			continue
		}
		j.ENIs = append(j.ENIs, HeldENI(e))
	}
	for i, raw := range f.Cooling {
		var c coolingJSON
		err := json.Unmarshal(raw, &c)
		if err == nil && !c.Address.IsValid() {
			err = errors.New("no address")
		}
		if err != nil {
			leftOut("cooling address", i, err)
			continue
		}
		j.Cooling = append(j.Cooling, Cooling{Address: c.Address, Until: nanos(c.Until)})
	}
	for i, raw := range f.Intents {
		var n intentJSON
		if err := json.Unmarshal(raw, &n); err != nil {
			leftOut("intent", i, err)
			n = intentJSON{Kind: IntentUnreadable}
		}
		j.Intents = append(j.Intents, Intent{Kind: n.Kind, ENI: n.ENI, Token: n.Token, Since: nanos(n.Since)})
	}
	return j, problems, nil
}
