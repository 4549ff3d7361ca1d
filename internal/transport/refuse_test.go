package transport

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// ends tells that a connection is over, and not only silent.
func ends(t *testing.T, conn net.Conn, what string) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err := conn.Read(make([]byte, 1))
	assert.True(t, err != nil && !errors.Is(err, os.ErrDeadlineExceeded), "%s is still open: %v", what, err)
}

func TestExpelledNodesAreCutOff(t *testing.T) {
	a := newAuthority(t)
	mine, bad, good := New(newConfig(t, a, "node:n1"), nil), New(newConfig(t, a, "node:bad"), nil), New(newConfig(t, a, "node:good"), nil)
	l, badl := listen(t, mine), listen(t, bad)

	// One connection of each direction with bad, one of good.
	ch := accepted(l.Lane(ProtoLink))
	fromBad, err := bad.Dial(t.Context(), l.Addr().String(), ProtoLink)
	require.NoError(t, err)
	in := take(t, ch)
	ch = accepted(badl.Lane(ProtoLink))
	out, err := mine.Dial(t.Context(), badl.Addr().String(), ProtoLink)
	require.NoError(t, err)
	take(t, ch)
	ch = accepted(l.Lane(ProtoLink))
	fromGood, err := good.Dial(t.Context(), l.Addr().String(), ProtoLink)
	require.NoError(t, err)
	kept := take(t, ch)

	mine.RefuseNodes([]string{"bad", "unknown"})
	mine.RefuseNodes([]string{"bad"})
	ends(t, in, "the link from bad")
	ends(t, out, "the link to bad")
	ends(t, fromBad, "bad's own end")
	again, err := bad.Dial(t.Context(), l.Addr().String(), ProtoRPC)
	if err == nil {
		ends(t, again, "a new one from bad")
	}
	_, err = mine.Dial(t.Context(), badl.Addr().String(), ProtoRPC)
	assert.ErrorIs(t, err, errRefused)

	_, err = fromGood.Write([]byte{7})
	require.NoError(t, err)
	b := make([]byte, 1)
	_, err = kept.Read(b)
	require.NoError(t, err, "others are left alone")

	for _, c := range []net.Conn{fromGood, kept, fromBad, out, in} {
		_ = c.Close()
	}
	mine.peers.mu.Lock()
	defer mine.peers.mu.Unlock()
	assert.Empty(t, mine.peers.open, "connections that are over are forgotten")
}
