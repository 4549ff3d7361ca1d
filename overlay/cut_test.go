package overlay

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/mpirun-vft/vft/internal/cutcheck"
)

// chatter is a guest whose state is how many frames it has sent to and
// received from every other guest. Numbers within a pair show the order.
type chatter struct {
	*guest

	want int // guests

	mu       sync.Mutex
	stopped  bool
	sentTo   []uint64
	seenFrom []uint64
	lost     []uint64 // gaps in the numbers, by source
	err      error
	quit     atomic.Bool
	running  *sync.Cond
	wg       sync.WaitGroup
}

// state is a snapshot of one guest.
type state struct {
	sentTo, seenFrom []uint64
	channel          [][]byte
}

func newChatter(t *testing.T, n *Network, index, guests int) *chatter {
	c := &chatter{
		guest: newGuest(t, n, index), want: guests,
		sentTo: make([]uint64, guests), seenFrom: make([]uint64, guests), lost: make([]uint64, guests),
	}
	c.running = sync.NewCond(&c.mu)
	return c
}

func (c *chatter) start() {
	c.listen()
	c.wg.Go(func() { c.chat(rand.New(rand.NewPCG(1, uint64(c.index)))) })
}

// listen begins to read from the guest's present connection.
func (c *chatter) listen() {
	conn := c.conn
	c.wg.Go(func() { c.read(conn) })
}

// read takes frames while the guest runs; a stopped QEMU does not. The body
// is read under mu, so that a frame is either in the socket or seen.
func (c *chatter) read(conn net.Conn) {
	_ = conn.SetReadDeadline(time.Time{})
	for {
		var header [4]byte
		if _, err := io.ReadFull(conn, header[:]); err != nil {
			return
		}
		c.mu.Lock()
		for c.stopped {
			c.running.Wait()
		}
		frame := make([]byte, binary.BigEndian.Uint32(header[:]))
		if _, err := io.ReadFull(conn, frame); err != nil {
			c.mu.Unlock()
			return
		}
		from, number := sourceGuest(frame), frameNumber(frame)
		switch seen := c.seenFrom[from]; {
		case number <= seen:
			c.err = fmt.Errorf("guest %d got frame %d of guest %d after frame %d", c.index, number, from, seen)
		case number > seen+1:
			c.lost[from] += number - seen - 1
			fallthrough
		default:
			c.seenFrom[from] = number
		}
		c.mu.Unlock()
	}
}

// chat sends bursts of frames to random guests.
func (c *chatter) chat(random *rand.Rand) {
	for !c.quit.Load() {
		c.mu.Lock()
		for c.stopped {
			c.running.Wait()
		}
		var burst []byte
		for range 1 + random.IntN(8) {
			to := random.IntN(c.want)
			if to == c.index {
				continue
			}
			c.sentTo[to]++
			burst = appendFrame(burst, testFrame(c.index, to, c.sentTo[to], 60+random.IntN(1500)))
		}
		_, err := c.conn.Write(burst) // under mu: a stop is between frames
		c.mu.Unlock()
		if err != nil {
			return
		}
		time.Sleep(time.Duration(random.IntN(500)) * time.Microsecond)
	}
}

func (c *chatter) stop() {
	c.quit.Store(true)
	_ = c.conn.Close()
	c.wg.Wait()
}

// cut stops the guest, takes its state and lets it go on.
func (c *chatter) cut(ctx context.Context) (state, error) {
	c.n.PauseDelivery(c.index)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	frames, err := c.n.DrainPort(ctx, c.index)
	s := state{
		sentTo: append([]uint64(nil), c.sentTo...), seenFrom: append([]uint64(nil), c.seenFrom...),
		channel: frames,
	}
	c.stopped = false
	c.running.Broadcast()
	return s, err
}

// checkCut checks invariant I4, and that channel state is all that is missing.
func checkCut(t *testing.T, cut []state) {
	t.Helper()
	guests := make([]cutcheck.Guest, len(cut))
	for i, s := range cut {
		guests[i] = cutcheck.Guest{Sent: s.sentTo, Seen: s.seenFrom, Channel: make([]uint64, len(cut))}
		for _, frame := range s.channel {
			for to := range cut {
				if destinationOf(frame) == macAddress(testMAC(to)) {
					guests[i].Channel[to]++
				}
			}
		}
	}
	require.NoError(t, cutcheck.Cut(guests))
	require.NoError(t, cutcheck.Whole(guests))
}

// TestCutUnderTraffic takes cuts of five guests on three nodes that talk all
// the time, with nodes that hold and release at different times.
func TestCutUnderTraffic(t *testing.T) {
	const guests, epochs = 5, 12
	c := newCluster(t, Limits{PortQueue: 512 << 20, LinkQueue: 512 << 20}, "a", "b", "c")
	members := c.members("a", "a", "b", "c", "c")
	nets := c.open(NetworkID{"job", 1}, members)
	var all []*chatter
	for i, m := range members {
		all = append(all, newChatter(t, nets[m.Node], i, guests))
	}
	for _, g := range all {
		g.start()
	}
	defer func() {
		for _, g := range all {
			g.stop()
		}
	}()
	random := rand.New(rand.NewPCG(7, 7))
	for epoch := uint64(1); epoch <= epochs; epoch++ {
		time.Sleep(time.Duration(random.IntN(10)) * time.Millisecond)
		var broken sync.WaitGroup
		if epoch%2 == 0 { // connections break about when the hold begins
			broken.Add(1)
			time.AfterFunc(time.Duration(random.IntN(2000))*time.Microsecond, func() {
				defer broken.Done()
				c.breakLinks("b")
			})
		}
		ctx := timeout(t, 10*time.Second)
		delays := map[string]time.Duration{}
		for node := range nets {
			delays[node] = time.Duration(random.IntN(3000)) * time.Microsecond
		}
		reports, err := tryHoldLate(ctx, nets, epoch, delays)
		require.NoError(t, err, "epoch %d", epoch)
		verify(t, c, members, reports)
		cut := make([]state, guests)
		group, gctx := errgroup.WithContext(ctx)
		for i, g := range all {
			group.Go(func() (err error) {
				cut[i], err = g.cut(gctx)
				return err
			})
		}
		require.NoError(t, group.Wait())
		for node := range nets { // one after the other
			nets[node].Release(epoch)
			time.Sleep(time.Duration(random.IntN(1000)) * time.Microsecond)
		}
		broken.Wait()
		checkCut(t, cut)
	}
	for i, g := range all {
		g.mu.Lock()
		require.NoError(t, g.err)
		for from, lost := range g.lost {
			assert.Zero(t, lost, "frames from %d to %d", from, i)
		}
		g.mu.Unlock()
	}
}

func BenchmarkSwitch(b *testing.B) {
	for _, place := range []struct {
		name  string
		nodes []string
	}{{"local", []string{"a", "a"}}, {"link", []string{"a", "b"}}} {
		for _, size := range []int{64, 1514, 9014, 65534} {
			b.Run(fmt.Sprintf("%s/throughput/%d", place.name, size), func(b *testing.B) {
				benchThroughput(b, place.nodes, size)
			})
		}
		b.Run(place.name+"/roundtrip", func(b *testing.B) { benchRoundTrip(b, place.nodes) })
	}
}

func benchPair(b *testing.B, nodes []string) (*guest, *guest) {
	c := newCluster(b, Limits{PortQueue: 64 << 20, LinkQueue: 256 << 20}, "a", "b")
	nets := c.open(NetworkID{"job", 1}, c.members(nodes...))
	return newGuest(b, nets[nodes[0]], 0), newGuest(b, nets[nodes[1]], 1)
}

// benchThroughput sends in bursts of up to 64 KiB, as QEMU's queue runs give,
// with at most 4 MiB on the way, as a TCP window would allow.
func benchThroughput(b *testing.B, nodes []string, size int) {
	g0, g1 := benchPair(b, nodes)
	var burst []byte
	frames := 0
	for len(burst)+size < 64<<10 || frames == 0 {
		burst = appendFrame(burst, testFrame(0, 1, 1, size))
		frames++
	}
	window := make(chan struct{}, max(1, 4<<20/len(burst)))
	b.SetBytes(int64(size))
	b.ResetTimer()
	done := make(chan error, 1)
	bursts := max(1, b.N/frames)
	go func() {
		buf := make([]byte, len(burst))
		for range bursts {
			if _, err := io.ReadFull(g1.r, buf); err != nil {
				done <- err
				return
			}
			<-window
		}
		done <- nil
	}()
	_ = g1.conn.SetReadDeadline(time.Time{})
	for range bursts {
		select {
		case window <- struct{}{}:
		case <-time.After(10 * time.Second):
			b.Fatalf("frames are missing: %+v %+v", g0.n.sw.Stats(), g1.n.sw.Stats())
		}
		if _, err := g0.conn.Write(burst); err != nil {
			b.Fatal(err)
		}
	}
	select {
	case err := <-done:
		if err != nil {
			b.Fatal(err)
		}
	case <-time.After(30 * time.Second):
		b.Fatalf("frames are missing: %+v %+v", g0.n.sw.Stats(), g1.n.sw.Stats())
	}
}

func benchRoundTrip(b *testing.B, nodes []string) {
	g0, g1 := benchPair(b, nodes)
	_ = g0.conn.SetReadDeadline(time.Time{})
	_ = g1.conn.SetReadDeadline(time.Time{})
	there, back := appendFrame(nil, testFrame(0, 1, 1, 64)), appendFrame(nil, testFrame(1, 0, 1, 64))
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, len(there))
		for {
			if _, err := io.ReadFull(g1.r, buf); err != nil {
				return
			}
			if _, err := g1.conn.Write(back); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, len(back))
	b.ResetTimer()
	for range b.N {
		if _, err := g0.conn.Write(there); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(g0.r, buf); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	_ = g1.conn.Close()
	<-done
}
