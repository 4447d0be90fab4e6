package plugin

import (
	"encoding/binary"
	"errors"
)

// The messages of rpc.proto that the plugin sends and reads, with an encoding of their own: linking the generated code
// would bring in all of protobuf's reflection and gRPC's client. A test holds every field against the generated code.

// podName is what all requests begin with, as fields 1 and 2.
type podName struct{ name, namespace string }

type addRequest struct {
	pod              podName
	infraContainerID string // 3
	netns            string // 4
	ifName           string // 5
	networkName      string // 6
	containerID      string // 7
	clientVersion    string // 8
	multiNIC         bool   // 9
}

func (m addRequest) encode() []byte {
	b := m.pod.encode()
	b = appendText(b, 3, m.infraContainerID)
	b = appendText(b, 4, m.netns)
	b = appendText(b, 5, m.ifName)
	b = appendText(b, 6, m.networkName)
	b = appendText(b, 7, m.containerID)
	b = appendText(b, 8, m.clientVersion)
	if m.multiNIC {
		b = appendNumber(b, 9, 1)
	}
	return b
}

type delRequest struct {
	pod              podName
	infraContainerID string // 3
	reason           string // 5
	ifName           string // 6
	networkName      string // 7
	containerID      string // 8
	clientVersion    string // 9
	podUID           string // 10
}

func (m delRequest) encode() []byte {
	b := m.pod.encode()
	b = appendText(b, 3, m.infraContainerID)
	b = appendText(b, 5, m.reason)
	b = appendText(b, 6, m.ifName)
	b = appendText(b, 7, m.networkName)
	b = appendText(b, 8, m.containerID)
	b = appendText(b, 9, m.clientVersion)
	return appendText(b, 10, m.podUID)
}

type enforceRequest struct {
	pod        podName
	mode       string // 3
	interfaces int32  // 4
}

func (m enforceRequest) encode() []byte {
	b := appendText(m.pod.encode(), 3, m.mode)
	if m.interfaces != 0 {
		b = appendNumber(b, 4, uint64(m.interfaces))
	}
	return b
}

func (m podName) encode() []byte {
	return appendText(appendText(nil, 1, m.name), 2, m.namespace)
}

// metadata is an address and where it belongs.
type metadata struct {
	ipv4, ipv6 string // 1, 2
	device     int32  // 3
	table      int32  // 4
}

func (m *metadata) decode(b []byte) error {
	return fields(b, func(tag uint64, value value) {
		switch tag {
		case 1<<3 | wireBytes:
			m.ipv4 = value.text()
		case 2<<3 | wireBytes:
			m.ipv6 = value.text()
		case 3<<3 | wireVarint:
			m.device = int32(value.number)
		case 4<<3 | wireVarint:
			m.table = int32(value.number)
		}
	})
}

// addReply has what the plugin reads of an AddNetworkReply.
type addReply struct {
	success      bool       // 1
	addresses    []metadata // 2
	vlan         int32      // 7
	branchMAC    string     // 8
	branchRouter string     // 9
	trunk        int32      // 10
	policyMode   string     // 13
	code, reason string     // 100, 101
	perPodRules  bool       // 102
}

func (m *addReply) decode(b []byte) error {
	var inner error
	err := fields(b, func(tag uint64, value value) {
		switch tag {
		case 1<<3 | wireVarint:
			m.success = value.number != 0
		case 2<<3 | wireBytes:
			m.addresses, inner = appendMetadata(m.addresses, value, inner)
		case 7<<3 | wireVarint:
			m.vlan = int32(value.number)
		case 8<<3 | wireBytes:
			m.branchMAC = value.text()
		case 9<<3 | wireBytes:
			m.branchRouter = value.text()
		case 10<<3 | wireVarint:
			m.trunk = int32(value.number)
		case 13<<3 | wireBytes:
			m.policyMode = value.text()
		case 100<<3 | wireBytes:
			m.code = value.text()
		case 101<<3 | wireBytes:
			m.reason = value.text()
		case 102<<3 | wireVarint:
			m.perPodRules = value.number != 0
		}
	})
	return errors.Join(err, inner)
}

// delReply has what the plugin reads of a DelNetworkReply.
type delReply struct {
	success    bool       // 1
	addresses  []metadata // 2
	vlan       int32      // 4
	policyMode string     // 6
}

func (m *delReply) decode(b []byte) error {
	var inner error
	err := fields(b, func(tag uint64, value value) {
		switch tag {
		case 1<<3 | wireVarint:
			m.success = value.number != 0
		case 2<<3 | wireBytes:
			m.addresses, inner = appendMetadata(m.addresses, value, inner)
		case 4<<3 | wireVarint:
			m.vlan = int32(value.number)
		case 6<<3 | wireBytes:
			m.policyMode = value.text()
		}
	})
	return errors.Join(err, inner)
}

// policyReply is either reply of the network policy agent.
type policyReply struct{ success bool }

func (m *policyReply) decode(b []byte) error {
	return fields(b, func(tag uint64, value value) {
		if tag == 1<<3|wireVarint {
			m.success = value.number != 0
		}
	})
}

func appendMetadata(list []metadata, value value, before error) ([]metadata, error) {
	var m metadata
	err := m.decode(value.bytes)
	return append(list, m), errors.Join(before, err)
}

// Wire types of protobuf.
const (
	wireVarint  = 0
	wireFixed64 = 1
	wireBytes   = 2
	wireFixed32 = 5
)

func appendNumber(b []byte, field, n uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, field<<3|wireVarint), n)
}

func appendText(b []byte, field uint64, s string) []byte {
	if s == "" {
		return b
	}
	b = binary.AppendUvarint(b, field<<3|wireBytes)
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// value is one field's value: a number, or bytes.
type value struct {
	number uint64
	bytes  []byte
}

func (v value) text() string { return string(v.bytes) }

var errMalformed = errors.New("malformed message")

// fields calls f for each field of a message, known or not, with its tag: number and wire type.
func fields(b []byte, f func(tag uint64, value value)) error {
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 {
			return errMalformed
		}
		b = b[n:]
		var v value
		size := 0
		switch tag & 7 {
		case wireVarint:
			if v.number, n = binary.Uvarint(b); n <= 0 {
				return errMalformed
			}
			size = n
		case wireFixed64:
			size = 8
		case wireFixed32:
			size = 4
		case wireBytes:
			length, n := binary.Uvarint(b)
			if n <= 0 || length > uint64(len(b)-n) {
				return errMalformed
			}
			size = n + int(length)
			v.bytes = b[n:size]
		default:
			return errMalformed
		}
		if size > len(b) {
			return errMalformed
		}
		f(tag, v)
		b = b[size:]
	}
	return nil
}
