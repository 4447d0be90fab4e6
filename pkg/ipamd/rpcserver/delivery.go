package rpcserver

import (
	"context"

	"google.golang.org/grpc/stats"

	"vpccni/pkg/ipamd"
)

// deliveries watches replies leave. A caller that dies between the allocator's answer and the reply would otherwise
// hold an address until kubelet deletes its sandbox, and the address would cool although no pod ever had it.
//
// What is known is that a reply was not even handed to the connection. One that was, and whose reader died before it
// read, looks like any other.
type deliveries struct {
	undelivered func(ipamd.Sandbox, ipamd.AddReply)
}

// delivery is the fate of one call. Its handler writes before the reply is sent, and the events of a call come one
// after the other.
type delivery struct {
	sandbox ipamd.Sandbox
	reply   ipamd.AddReply
	pending bool // an address is in a reply that has not left
}

type deliveryKey struct{}

// expect notes that the reply of this call hands over an address.
func expect(ctx context.Context, s ipamd.Sandbox, r ipamd.AddReply) {
	if d, ok := ctx.Value(deliveryKey{}).(*delivery); ok {
		*d = delivery{s, r, true}
	}
}

func (deliveries) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	return context.WithValue(ctx, deliveryKey{}, &delivery{})
}

func (h deliveries) HandleRPC(ctx context.Context, event stats.RPCStats) {
	d, ok := ctx.Value(deliveryKey{}).(*delivery)
	if !ok {
		return
	}
	switch event.(type) {
	case *stats.OutPayload:
		d.pending = false
	case *stats.End:
		if d.pending {
			h.undelivered(d.sandbox, d.reply)
		}
	}
}

func (deliveries) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (deliveries) HandleConn(context.Context, stats.ConnStats) {}
