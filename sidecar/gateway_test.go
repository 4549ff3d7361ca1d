package sidecar

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/guest"
	"github.com/mpirun-vft/vft/quiesce"
)

// fakeQEMU plays guest 0's QEMU on the job's network.
func fakeQEMU(t *testing.T, s *Sidecar, inc *incarnation) net.Conn {
	t.Helper()
	socket := filepath.Join(s.cfg.Run, "q")
	ln, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer func() { _ = ln.Close() }()
	_, err = inc.net.AttachPort(t.Context(), 0, socket)
	require.NoError(t, err)
	qemu, err := ln.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = qemu.Close() })
	return qemu
}

// askGateway sends an ARP request for the gateway's address.
func askGateway(t *testing.T, qemu net.Conn) {
	t.Helper()
	f := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, guest.MAC(0)...)
	f = append(f, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1)
	f = append(append(f, guest.MAC(0)...), guest.Addr(0).AsSlice()...)
	f = append(append(f, 0, 0, 0, 0, 0, 0), guest.GatewayAddr().AsSlice()...)
	_, err := qemu.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(f))), f...))
	require.NoError(t, err)
}

// answers waits for the gateway's answer to askGateway.
func answers(t *testing.T, qemu net.Conn) {
	t.Helper()
	require.NoError(t, qemu.SetReadDeadline(time.Now().Add(10*time.Second)))
	var prefix [4]byte
	_, err := io.ReadFull(qemu, prefix[:])
	require.NoError(t, err)
	f := make([]byte, binary.BigEndian.Uint32(prefix[:]))
	_, err = io.ReadFull(qemu, f)
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(f), 42)
	assert.Equal(t, []byte(guest.MAC(guest.GatewayIndex)), f[6:12])
	assert.Equal(t, []byte{0x08, 0x06}, f[12:14])
	assert.Equal(t, guest.GatewayAddr().AsSlice(), f[28:32])
}

// TestGatewayIsHeld: pairs with the gateway are counted and drained like those
// of guests, and what it and a guest send during a hold waits for the release.
func TestGatewayIsHeld(t *testing.T) {
	s := idle(t, testConfig(t, "n1", &leader{}))
	inc := place(t, s, "job", 1)
	inc.tendGateway()
	inc.net.Resume() // an idle sidecar has no lease
	qemu := fakeQEMU(t, s, inc)
	askGateway(t, qemu)
	answers(t, qemu)

	members := []*vftv1.Member{{Guest: 0, Node: "n1"}}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	require.NoError(t, inc.net.Hold(ctx, 1))
	counts, err := inc.net.Drained(ctx, 1)
	require.NoError(t, err)
	_, err = quiesce.VerifyDrain(members, map[string][]*vftv1.PairCount{"n1": counts})
	require.ErrorIs(t, err, quiesce.ErrImbalance, "the gateway is a member")
	proof, err := quiesce.VerifyDrain(WithGateway(members), map[string][]*vftv1.PairCount{"n1": counts})
	require.NoError(t, err)
	require.Len(t, proof.GetPairs(), 2)
	for _, p := range proof.GetPairs() {
		assert.EqualValues(t, 1, p.GetSent(), "%v", p)
	}

	askGateway(t, qemu)
	held := func() bool {
		for _, p := range s.showNetwork(inc.net).GetPorts() {
			if p.GetGuest() == 0 {
				return p.GetHeld() > 0
			}
		}
		return false
	}
	require.Eventually(t, held, 10*time.Second, time.Millisecond)
	again, err := inc.net.Drained(ctx, 1)
	require.NoError(t, err)
	assert.Equal(t, len(counts), len(again))
	inc.net.Release(1)
	answers(t, qemu)
}

// TestGatewayObeys: ports are open as the leader says, for this incarnation, on
// the node of guest 0, and while the lease holds.
func TestGatewayObeys(t *testing.T) {
	s := idle(t, testConfig(t, "n1", &leader{}))
	inc := place(t, s, "job", 2)
	inc.tendGateway()
	s.suspended.Store(false)
	inc.net.Resume()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	port := &vftv1.PublishedPort{Address: "127.0.0.1", Port: uint32(ln.Addr().(*net.TCPAddr).Port), GuestPort: 80}
	at := ln.Addr().String()
	require.NoError(t, ln.Close())
	tell := func(incarnation uint64, g *vftv1.GatewayPolicy) {
		s.obey(&vftv1.HeartbeatResponse{Jobs: []*vftv1.WantedJob{{Job: "job", Incarnation: incarnation, Gateway: g}}})
	}
	open := func() bool {
		c, err := net.Dial("tcp", at)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}
	opens := func() { t.Helper(); require.Eventually(t, open, 10*time.Second, time.Millisecond) }
	closes := func() {
		t.Helper()
		require.Eventually(t, func() bool { return !open() }, 10*time.Second, time.Millisecond)
	}
	require.NotNil(t, inc.showGateway())
	assert.Empty(t, inc.showGateway().GetPorts())
	policy := &vftv1.GatewayPolicy{Ports: []*vftv1.PublishedPort{port}, Host: true}
	tell(1, policy) // a late answer about an earlier life
	assert.Empty(t, inc.showGateway().GetPorts())
	tell(2, policy)
	opens()
	assert.True(t, inc.showGateway().GetHost())
	assert.EqualValues(t, port.GetPort(), inc.showGateway().GetPorts()[0].GetPort().GetPort())

	s.suspend(t.Context(), time.Second)
	closes()
	tell(2, policy)
	s.resume(t.Context())
	opens()

	// Guest 0 moves away: so does the gateway.
	moved := []*vftv1.Member{{Guest: 0, Node: "n2", Address: "n2:1"}}
	require.NoError(t, inc.net.Rehome(networkMembers(moved)))
	inc.net.Settle()
	inc.setMembers(moved)
	inc.tendGateway()
	assert.Nil(t, inc.showGateway())
	closes()
	tell(2, policy)
	assert.False(t, open())

	// It comes back.
	back := []*vftv1.Member{{Guest: 0, Node: "n1", Address: "n1:1"}}
	require.NoError(t, inc.net.Rehome(networkMembers(back)))
	inc.net.Settle()
	inc.setMembers(back)
	inc.tendGateway()
	tell(2, policy)
	opens()

	s.killUpTo("job", 2)
	closes()
}
