package slice

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"vpccni/lab/probe"
)

// streamPace is the time between two datagrams of a stream, and so what a loss is measured in.
const streamPace = 25 * time.Millisecond

// stream is a flow of datagrams from one socket to another, each of which is answered. It loses what the network loses:
// nothing is repeated.
type stream struct {
	name string
	conn net.Conn
	stop context.CancelFunc
	done sync.WaitGroup

	mu sync.Mutex
	// sent and answered are by the datagrams' numbers.
	sent     []time.Time
	answered []bool
}

// openStream begins to send; serve must listen at the other end.
func openStream(t *testing.T, name string, from probe.Do, to netip.Addr) *stream {
	t.Helper()
	s := &stream{name: name}
	err := from(func() (err error) {
		s.conn, err = net.Dial("udp", netip.AddrPortFrom(to, flowPort).String())
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	s.stop = stop
	s.done.Go(func() { s.send(ctx) })
	s.done.Go(s.receive)
	t.Cleanup(s.close)
	return s
}

// close ends the stream. The last datagrams may lack their answers.
func (s *stream) close() {
	s.stop()
	s.done.Wait()
}

func (s *stream) send(ctx context.Context) {
	defer func() { _ = s.conn.Close() }() // ends receive
	tick := time.NewTicker(streamPace)
	defer tick.Stop()
	datagram := make([]byte, 200) // the answer's first line takes the place of its beginning
	for {
		s.mu.Lock()
		n := len(s.sent)
		s.sent, s.answered = append(s.sent, time.Now()), append(s.answered, false)
		s.mu.Unlock()
		binary.BigEndian.PutUint64(datagram[len(datagram)-8:], uint64(n))
		_, _ = s.conn.Write(datagram) // with an error it is one more datagram without an answer
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (s *stream) receive() {
	answer := make([]byte, 2048)
	for {
		n, err := s.conn.Read(answer)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil || n < 8: // what ICMP says of one of the datagrams
			continue
		}
		number := binary.BigEndian.Uint64(answer[n-8 : n])
		s.mu.Lock()
		if number < uint64(len(s.answered)) {
			s.answered[number] = true
		}
		s.mu.Unlock()
	}
}

// next is the number of the next datagram.
func (s *stream) next() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sent)
}

// loss is for how long nothing came through, among the datagrams from one number up to another one, all times together.
func (s *stream) loss(from, to int) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	var total time.Duration
	for i := from; i < to; i++ {
		if s.answered[i] {
			continue
		}
		first := i
		for i+1 < to && !s.answered[i+1] {
			i++
		}
		total += s.sent[i].Sub(s.sent[first]) + streamPace
	}
	return total
}

// firstLoss is when the first datagram of a range was sent that had no answer.
func (s *stream) firstLoss(from, to int) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := from; i < to; i++ {
		if !s.answered[i] {
			return s.sent[i]
		}
	}
	return time.Time{}
}
