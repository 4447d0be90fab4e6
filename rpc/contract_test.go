package rpc

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// ours is the first field number that upstream does not know.
const ours = 100

// field is one of upstream's.
type field struct {
	number         protowire.Number
	name, typeName string
	repeated       bool
}

// contract is testdata/contract.txt.
type contract struct {
	methods  []string           // service.method request reply
	messages map[string][]field // by name
	order    []string
}

func readContract(t *testing.T) contract {
	t.Helper()
	f, err := os.Open("testdata/contract.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := contract{messages: map[string][]field{}}
	var kind, name string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		words := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "#"):
		case !strings.HasPrefix(line, " "):
			kind, name = words[0], words[1]
			if kind == "message" {
				c.order = append(c.order, name)
				c.messages[name] = nil
			}
		case kind == "service":
			c.methods = append(c.methods, name+"."+strings.Join(words, " "))
		default:
			number, err := strconv.Atoi(words[0])
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			c.messages[name] = append(c.messages[name], field{protowire.Number(number), words[1], words[len(words)-1], len(words) == 4})
		}
	}
	return c
}

// TestContract: every service, method, message and field of upstream's is there, with its name, number and type, and
// nothing of ours is where upstream could put something.
func TestContract(t *testing.T) {
	t.Parallel()
	c := readContract(t)
	var methods []string
	services := File_rpc_rpc_proto.Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			m := services.Get(i).Methods().Get(j)
			in, out := strings.TrimPrefix(string(m.Input().FullName()), "rpc."), strings.TrimPrefix(string(m.Output().FullName()), "rpc.")
			methods = append(methods, fmt.Sprintf("%s.%s %s %s", services.Get(i).Name(), m.Name(), in, out))
		}
	}
	if got, want := strings.Join(methods, "\n"), strings.Join(c.methods, "\n"); got != want {
		t.Errorf("methods:\n%s\nwant:\n%s", got, want)
	}
	messages := File_rpc_rpc_proto.Messages()
	for i := range messages.Len() {
		m := messages.Get(i)
		want, known := c.messages[string(m.Name())]
		if !known {
			t.Errorf("message %s is not upstream's", m.Name())
			continue
		}
		var got []field
		for j := range m.Fields().Len() {
			if f := m.Fields().Get(j); f.Number() < ours {
				got = append(got, field{f.Number(), string(f.Name()), typeName(f), f.IsList()})
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s:\ngot  %v\nwant %v", m.Name(), got, want)
		}
		delete(c.messages, string(m.Name()))
	}
	for name := range c.messages {
		t.Errorf("message %s is missing", name)
	}
}

func typeName(f protoreflect.FieldDescriptor) string {
	if f.Message() != nil {
		return string(f.Message().Name())
	}
	return f.Kind().String()
}

// TestWire: bytes that upstream writes are read as what they mean, and what we write are those bytes. The bytes are
// made from the contract's numbers, not by the generated code.
func TestWire(t *testing.T) {
	t.Parallel()
	c := readContract(t)
	for _, name := range c.order {
		want := c.encode(name)
		kind, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName("rpc." + name))
		if err != nil {
			t.Fatal(err)
		}
		m := kind.New().Interface()
		if err := proto.Unmarshal(want, m); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(m.ProtoReflect().GetUnknown()) > 0 {
			t.Errorf("%s: fields are not understood: %x", name, m.ProtoReflect().GetUnknown())
		}
		got, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v\ngot  %x\nwant %x", name, err, got, want)
		}
	}
}

// encode writes a message with every field set: to text that names it, true, or its number.
func (c contract) encode(name string) []byte {
	var b []byte
	for _, f := range c.messages[name] {
		times := 1
		if f.repeated {
			times = 2
		}
		for range times {
			switch f.typeName {
			case "string":
				b = protowire.AppendString(protowire.AppendTag(b, f.number, protowire.BytesType), f.name)
			case "bool":
				b = protowire.AppendVarint(protowire.AppendTag(b, f.number, protowire.VarintType), 1)
			case "int32":
				b = protowire.AppendVarint(protowire.AppendTag(b, f.number, protowire.VarintType), uint64(1000+f.number))
			default:
				b = protowire.AppendBytes(protowire.AppendTag(b, f.number, protowire.BytesType), c.encode(f.typeName))
			}
		}
	}
	return b
}

// Upstream reads our replies without the fields from 100 on.
func TestUpstreamSkipsOurs(t *testing.T) {
	t.Parallel()
	with := &AddNetworkReply{NetworkPolicyMode: "strict", Code: "AtLimit", Reason: "all addresses are in use"}
	b, err := proto.Marshal(with)
	if err != nil {
		t.Fatal(err)
	}
	var known []byte
	for rest := b; len(rest) > 0; {
		number, _, n := protowire.ConsumeField(rest)
		if n < 0 {
			t.Fatal(protowire.ParseError(n))
		}
		if number < ours {
			known = append(known, rest[:n]...)
		}
		rest = rest[n:]
	}
	want, err := proto.Marshal(&AddNetworkReply{NetworkPolicyMode: "strict"})
	if err != nil || !bytes.Equal(known, want) {
		t.Errorf("%v\ngot  %x\nwant %x", err, known, want)
	}
}
