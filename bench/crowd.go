package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mpirun-vft/vft/guest"
)

const (
	crowdPorts = 32
	crowdFrame = 9014
	crowdBurst = 8 // frames to the neighbour, then one to the last guest
	crowdAhead = 1 << 20
)

// crowd is the throughput among the guests that read, in Gbit/s.
type crowd struct{ open, deaf []float64 }

// crowd lets each of 31 guests send to the next one, in a ring and no faster
// than that one reads, and everybody to the last guest too, which reads or does
// not.
func (o Overlay) crowd(ctx context.Context, c *crowd, deaf bool) (err error) {
	b := &wires{Overlay: o}
	defer func() { err = errors.Join(err, b.clear(ctx)) }()
	var listeners []net.Listener
	var sockets []string
	for i := range crowdPorts {
		socket := filepath.Join(o.Dir, fmt.Sprint("g", i))
		_ = os.Remove(socket)
		l, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
		if err != nil {
			return fmt.Errorf("listen as a guest: %w", err)
		}
		defer l.Close() //nolint:errcheck // nothing comes any more
		listeners, sockets = append(listeners, l), append(sockets, socket)
	}
	if err := b.startSwitches(ctx, 1, sockets); err != nil {
		return err
	}
	var conns []net.Conn
	for _, l := range listeners {
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("the switch does not connect: %w", err)
		}
		conns = append(conns, conn)
	}
	var guests sync.WaitGroup
	var carried atomic.Int64
	const others = crowdPorts - 1
	windows := make([]chan struct{}, others)
	for i := range windows {
		windows[i] = make(chan struct{}, crowdAhead/(crowdBurst*crowdFrame))
	}
	ctx, cancel := context.WithTimeout(ctx, o.Time)
	defer cancel()
	for i := range others {
		guests.Go(func() { // sends
			next := (i + 1) % others
			var burst []byte
			for range crowdBurst {
				burst = appendCrowdFrame(burst, i, next)
			}
			burst = appendCrowdFrame(burst, i, others)
			for {
				select {
				case windows[next] <- struct{}{}:
				case <-ctx.Done():
					return
				}
				if _, err := conns[i].Write(burst); err != nil {
					return
				}
			}
		})
		guests.Go(func() {
			countFramesOf(conns[i], func(bytes int) { carried.Add(int64(bytes)) }, windows[i])
		})
	}
	if !deaf {
		guests.Go(func() { countFramesOf(conns[others], func(int) {}, nil) })
	}
	began := time.Now()
	<-ctx.Done()
	rate := float64(carried.Load()) * 8 / time.Since(began).Seconds() / 1e9
	for _, conn := range conns {
		_ = conn.Close()
	}
	guests.Wait()
	if deaf {
		c.deaf = append(c.deaf, rate)
	} else {
		c.open = append(c.open, rate)
	}
	return nil
}

func appendCrowdFrame(buf []byte, from, to int) []byte {
	frame := make([]byte, plugHeader+crowdFrame)
	binary.BigEndian.PutUint32(frame, crowdFrame)
	copy(frame[plugHeader:], guest.MAC(to))
	copy(frame[plugHeader+6:], guest.MAC(from))
	frame[plugHeader+12], frame[plugHeader+13] = 0x88, 0xb5 // for experiments
	return append(buf, frame...)
}

// countFramesOf reads until the connection is closed, and gives the sender
// room for another burst whenever one has come.
func countFramesOf(conn net.Conn, count func(bytes int), window <-chan struct{}) {
	const burst = crowdBurst * (plugHeader + crowdFrame)
	buf := make([]byte, plugBatch)
	for in := 0; ; {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		count(n)
		for in += n; in >= burst && window != nil; in -= burst {
			select {
			case <-window:
			default: // at the end the sender may have left
			}
		}
	}
}
