package egress

import (
	"encoding/json"
	"fmt"
	"io"

	"vpccni/pkg/networkutils/podnet"
)

// The previous result is passed on as it came, whatever plugins before this one have put into it: what is not known here
// is not lost.

// printPrevious prints the previous result, in the version that it has.
func (c *call) printPrevious(out io.Writer) error {
	members, err := c.previousMembers()
	if err != nil {
		return err
	}
	return printMembers(out, members)
}

// printWith prints the previous result with the two ends of the way out behind its interfaces. Its addresses are not added:
// they are of no use to anybody but the pod.
func (c *call) printWith(out io.Writer, e podnet.Egress) error {
	members, err := c.previousMembers()
	if err != nil {
		return err
	}
	var interfaces []json.RawMessage
	if raw, ok := members["interfaces"]; ok {
		if err := json.Unmarshal(raw, &interfaces); err != nil {
			return fmt.Errorf("interfaces of prevResult: %w", err)
		}
	}
	type iface struct {
		Name    string `json:"name"`
		MAC     string `json:"mac"`
		Sandbox string `json:"sandbox,omitempty"`
	}
	host, pod := e.MACs()
	for _, i := range []iface{{e.HostVeth(), host, ""}, {e.Name(), pod, e.Netns}} {
		raw, err := json.Marshal(i)
		if err != nil {
			return err
		}
		interfaces = append(interfaces, raw)
	}
	if members["interfaces"], err = json.Marshal(interfaces); err != nil {
		return err
	}
	return printMembers(out, members)
}

// previousMembers are those of the previous result. Runtimes write its version; where one did not, it is the
// configuration's.
func (c *call) previousMembers() (map[string]json.RawMessage, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(c.conf.rawPrev, &members); err != nil {
		return nil, fmt.Errorf("prevResult: %w", err)
	}
	if _, ok := members["cniVersion"]; !ok {
		version, err := json.Marshal(c.conf.CNIVersion)
		if err != nil {
			return nil, err
		}
		members["cniVersion"] = version
	}
	return members, nil
}

func printMembers(out io.Writer, members map[string]json.RawMessage) error {
	text, err := json.MarshalIndent(members, "", "    ")
	if err != nil {
		return err
	}
	_, err = out.Write(append(text, '\n'))
	return err
}
