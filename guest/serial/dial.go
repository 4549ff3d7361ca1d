package serial

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"time"
)

const (
	synFirst = 20 * time.Millisecond
	synMax   = 500 * time.Millisecond
)

// Dial opens a session over the host's end of the line, which it then owns:
// closing the returned connection closes it, and so does a failure. Dial
// repeats its request until the guest answers or ctx ends.
func Dial(ctx context.Context, raw net.Conn) (net.Conn, error) {
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, fmt.Errorf("choose a session id: %w", err)
	}
	l := &line{w: raw}
	c := newConn(l, binary.BigEndian.Uint64(id[:]), func() {})
	pump := make(chan struct{})
	acked := make(chan struct{})
	c.onClose = func() {
		// Best effort; the next SYN does the same.
		_ = raw.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		_ = l.send(record{kind: kindFin, session: c.session})
		_ = raw.Close()
		<-pump
	}
	go func() {
		defer close(pump)
		pumpHost(raw, c, acked)
	}()

	wait := synFirst
	for {
		_ = raw.SetWriteDeadline(time.Now().Add(synMax))
		// A write that times out may be cut in the middle: the guest's scanner
		// copes, and the next SYN is whole.
		_ = l.send(record{kind: kindSyn, session: c.session})
		timer := time.NewTimer(wait)
		select {
		case <-acked:
			timer.Stop()
			_ = raw.SetWriteDeadline(time.Time{})
			return c, nil
		case <-pump:
			timer.Stop()
			err := c.state()
			_ = c.Close()
			return nil, fmt.Errorf("open a session with the guest's agent: %w", err)
		case <-ctx.Done():
			timer.Stop()
			_ = c.Close()
			return nil, fmt.Errorf("open a session with the guest's agent: %w", ctx.Err())
		case <-timer.C:
			wait = min(wait*2, synMax)
		}
	}
}

// pumpHost moves records from the line to the session until either ends.
func pumpHost(raw net.Conn, c *conn, acked chan struct{}) {
	var s scanner
	buf := make([]byte, 64<<10)
	isAcked := false
	for {
		n, err := raw.Read(buf)
		s.feed(buf[:n])
		for {
			r, ok := s.next()
			if !ok {
				break
			}
			if r.session != c.session {
				continue
			}
			switch r.kind {
			case kindSynAck:
				if !isAcked {
					isAcked = true
					close(acked)
				}
			case kindData:
				if !c.deliver(r, true) {
					return
				}
			case kindFin:
				c.fail(ErrReset)
				return
			}
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}
