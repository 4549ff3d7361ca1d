package sidecar

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/guest"
	"github.com/mpirun-vft/vft/overlay"
	"github.com/mpirun-vft/vft/quiesce"
)

const talkers = 4 // guests 0 and 1 on node a, 2 and 3 on node b

// talker plays a guest and its QEMU: it sends numbered frames to all others
// and notes what arrives. Whoever holds both locks sees it stand still.
type talker struct {
	index int
	conn  *net.UnixConn
	raw   syscall.RawConn

	sending sync.Mutex
	sent    [talkers]uint64 // last number per receiver

	receiving sync.Mutex
	rest      []byte // of a frame that has not come completely
	got       [talkers]uint64
	wrong     error

	// at the cut
	cutSent, cutGot [talkers]uint64
}

func (g *talker) frame(to int) []byte {
	g.sent[to]++
	size := 60 + rand.IntN(1400)
	b := make([]byte, 4+size)
	binary.BigEndian.PutUint32(b, uint32(size))
	copy(b[4:], guest.MAC(to))
	copy(b[10:], guest.MAC(g.index))
	b[16], b[17] = 0x88, 0xb5
	b[18], b[19] = byte(g.index), byte(to)
	binary.BigEndian.PutUint64(b[20:], g.sent[to])
	return b
}

// decode returns who sent a frame (without its length), to whom, and its number.
func decode(frame []byte) (from, to int, number uint64) {
	return int(frame[14]), int(frame[15]), binary.BigEndian.Uint64(frame[16:])
}

func (g *talker) talk(ctx context.Context) error {
	for ctx.Err() == nil {
		g.sending.Lock()
		var burst []byte
		for range 1 + rand.IntN(8) {
			burst = append(burst, g.frame((g.index+1+rand.IntN(talkers-1))%talkers)...)
		}
		_, err := g.conn.Write(burst)
		g.sending.Unlock()
		if err != nil {
			return err
		}
		time.Sleep(time.Duration(rand.IntN(400)) * time.Microsecond)
	}
	return nil
}

// take notes what can be read without waiting. Called with receiving held.
func (g *talker) take(fd uintptr) (end bool) {
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(int(fd), buf)
		if errors.Is(err, unix.EAGAIN) {
			return false
		}
		if n <= 0 {
			return true
		}
		g.rest = append(g.rest, buf[:n]...)
		for len(g.rest) >= 4 && len(g.rest) >= 4+int(binary.BigEndian.Uint32(g.rest)) {
			size := 4 + int(binary.BigEndian.Uint32(g.rest))
			from, to, number := decode(g.rest[4:size])
			if (to != g.index || number != g.got[from]+1) && g.wrong == nil {
				g.wrong = fmt.Errorf("guest %d got frame %d from %d to %d after %d", g.index, number, from, to, g.got[from])
			}
			g.got[from] = number
			g.rest = g.rest[size:]
		}
	}
}

func (g *talker) listen() error {
	return g.raw.Read(func(fd uintptr) bool {
		g.receiving.Lock()
		defer g.receiving.Unlock()
		return g.take(fd)
	})
}

// still is the snapshot of a talker.
type still struct{ g *talker }

func (s still) Prepare(context.Context) error { return nil }

func (s still) EarlyStop() <-chan time.Time { return nil }

func (s still) Cut(ctx context.Context, atCut func(context.Context) error) error {
	g := s.g
	time.Sleep(time.Duration(rand.IntN(5)) * time.Millisecond)
	g.sending.Lock()
	defer g.sending.Unlock()
	g.receiving.Lock()
	defer g.receiving.Unlock()
	// QEMU takes what is in its socket before it stops.
	if err := g.raw.Control(func(fd uintptr) { g.take(fd) }); err != nil {
		return err
	}
	if len(g.rest) > 0 {
		return fmt.Errorf("guest %d is cut amid a frame", g.index)
	}
	g.cutSent, g.cutGot = g.sent, g.got
	if err := atCut(ctx); err != nil {
		return err
	}
	time.Sleep(time.Duration(rand.IntN(3)) * time.Millisecond)
	var late bool
	err := g.raw.Control(func(fd uintptr) {
		n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		late = err == nil && n > 0
	})
	if late {
		return fmt.Errorf("something was delivered to guest %d while it was cut", g.index)
	}
	return err
}

func (s still) Abort(context.Context) error { return nil }

// network makes two nodes with two talkers each, linked in memory.
func network(t *testing.T) ([]*talker, map[string]*quiesce.Participant, []*vftv1.Member) {
	t.Helper()
	dir, err := os.MkdirTemp("", "cut")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	switches := map[string]*overlay.Switch{}
	var links sync.WaitGroup
	dial := func(_ context.Context, address string) (net.Conn, error) {
		near, far := net.Pipe()
		links.Go(func() { _ = switches[address].ServeLink(context.Background(), far) })
		return near, nil
	}
	for i, node := range []string{"a", "b"} {
		switches[node], err = overlay.New(overlay.Config{Node: node, Session: uint64(i + 1), Dial: dial, MAC: guest.MAC})
		require.NoError(t, err)
	}
	t.Cleanup(func() {
		for _, s := range switches {
			s.Close()
		}
		links.Wait()
	})
	var members []*vftv1.Member
	var placed []overlay.Member
	for i := range talkers {
		node := []string{"a", "b"}[i/2]
		members = append(members, &vftv1.Member{Guest: uint32(i), Node: node, Address: node})
		placed = append(placed, overlay.Member{Guest: i, Node: node, Address: node})
	}
	parts := map[string]*quiesce.Participant{}
	var guests []*talker
	for _, node := range []string{"a", "b"} {
		network, err := switches[node].Open(overlay.NetworkID{Job: "job", Incarnation: 1}, placed)
		require.NoError(t, err)
		parts[node] = quiesce.NewParticipant(quiesce.Config{Network: network})
		t.Cleanup(parts[node].Close)
		for _, m := range placed {
			if m.Node != node {
				continue
			}
			path := filepath.Join(dir, fmt.Sprint(m.Guest))
			ln, err := net.Listen("unix", path)
			require.NoError(t, err)
			_, err = network.AttachPort(t.Context(), m.Guest, path)
			require.NoError(t, err)
			conn, err := ln.Accept()
			require.NoError(t, err)
			require.NoError(t, ln.Close())
			g := &talker{index: m.Guest, conn: conn.(*net.UnixConn)}
			g.raw, err = g.conn.SyscallConn()
			require.NoError(t, err)
			guests = append(guests, g)
		}
	}
	// What is sent while a link is not up is dropped, as on any Ethernet.
	require.Eventually(t, func() bool {
		for _, s := range switches {
			if links := s.Stats().Links; len(links) == 0 || !links[0].Up {
				return false
			}
		}
		return true
	}, 5*time.Second, time.Millisecond)
	return guests, parts, members
}

// checkpoint goes through one epoch as the leader does and returns the
// channel state.
func checkpoint(t *testing.T, epoch uint64, guests []*talker, parts map[string]*quiesce.Participant, members []*vftv1.Member) [][]byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	everywhere := func(f func(ctx context.Context, node string, p *quiesce.Participant) error) {
		t.Helper()
		eg, ctx := errgroup.WithContext(ctx)
		for node, p := range parts {
			eg.Go(func() error {
				time.Sleep(time.Duration(rand.IntN(3)) * time.Millisecond)
				return f(ctx, node, p)
			})
		}
		require.NoError(t, eg.Wait(), "epoch %d", epoch)
	}
	var mu sync.Mutex
	reports := map[string][]*vftv1.PairCount{}
	var channel [][]byte
	everywhere(func(ctx context.Context, node string, p *quiesce.Participant) error {
		snaps := map[int]quiesce.Snapshot{}
		for _, m := range members {
			if m.GetNode() == node {
				snaps[int(m.GetGuest())] = still{guests[m.GetGuest()]}
			}
		}
		return p.Prepare(ctx, epoch, snaps)
	})
	everywhere(func(ctx context.Context, node string, p *quiesce.Participant) error {
		pairs, err := p.Hold(ctx, epoch, 15*time.Second)
		mu.Lock()
		defer mu.Unlock()
		reports[node] = pairs
		return err
	})
	proof, err := quiesce.VerifyDrain(members, reports)
	require.NoError(t, err)
	for _, pair := range proof.GetPairs() {
		require.Zero(t, pair.GetDropped())
	}
	everywhere(func(ctx context.Context, _ string, p *quiesce.Participant) error {
		results, err := p.Cut(ctx, epoch)
		mu.Lock()
		defer mu.Unlock()
		for _, r := range results {
			channel = append(channel, r.Frames...)
		}
		return err
	})
	everywhere(func(ctx context.Context, _ string, p *quiesce.Participant) error {
		outcome, err := p.Release(ctx, epoch)
		if err == nil && !outcome.ByOrder {
			return errors.New("released before it was ordered")
		}
		return err
	})
	return channel
}

// Participants and switches together give consistent cuts of live traffic: a
// frame that a guest sent after its cut reaches nobody before theirs, and what
// was sent before the cuts was either delivered or is channel state, once and
// in order. Nothing is lost or doubled for those who go on.
func TestCutIsConsistent(t *testing.T) {
	guests, parts, members := network(t)
	ctx, stop := context.WithCancel(t.Context())
	talking, listening := errgroup.Group{}, errgroup.Group{}
	for _, g := range guests {
		talking.Go(func() error { return g.talk(ctx) })
		listening.Go(g.listen)
	}
	held := 0
	for epoch := range uint64(12) {
		time.Sleep(time.Duration(rand.IntN(15)) * time.Millisecond)
		channel := checkpoint(t, epoch+1, guests, parts, members)
		held += len(channel)
		var waiting [talkers][talkers]uint64 // last number in the channel state, by sender and receiver
		for from, g := range guests {
			for to, r := range guests {
				require.LessOrEqual(t, r.cutGot[from], g.cutSent[to],
					"epoch %d: guest %d knew a frame that %d sent after its cut", epoch+1, to, from)
				waiting[from][to] = r.cutGot[from]
			}
		}
		for _, frame := range channel {
			from, to, number := decode(frame)
			require.Equal(t, waiting[from][to]+1, number, "epoch %d: channel state from %d to %d has a gap or a frame twice", epoch+1, from, to)
			waiting[from][to] = number
		}
		for from, g := range guests {
			require.Equal(t, g.cutSent, waiting[from], "epoch %d: delivered and channel state are not all that guest %d had sent", epoch+1, from)
		}
	}
	assert.NotZero(t, held, "no cut had a frame on its way: the test has not seen what it is for")
	stop()
	require.NoError(t, talking.Wait())
	assert.Eventually(t, func() bool {
		for from, g := range guests {
			for to, r := range guests {
				r.receiving.Lock()
				got := r.got[from]
				r.receiving.Unlock()
				if got != g.sent[to] {
					return false
				}
			}
		}
		return true
	}, 10*time.Second, 5*time.Millisecond, "frames were lost")
	for _, g := range guests {
		_ = g.conn.Close()
	}
	_ = listening.Wait() // ends when the connections are closed
	for _, g := range guests {
		assert.NoError(t, g.wrong)
	}
}
