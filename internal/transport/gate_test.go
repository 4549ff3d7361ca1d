package transport

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// blink is long enough to see that something does not happen.
const blink = 40 * time.Millisecond

// through returns a connection made through the gate and its other end.
func through(t *testing.T, g *Gate) (gated, far net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close() //nolint:errcheck // one connection is all
	gated, err = g.Dial(t.Context(), ln.Addr().String())
	require.NoError(t, err)
	far, err = ln.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = gated.Close(), far.Close() })
	return gated, far
}

func TestOpenGatePasses(t *testing.T) {
	gated, far := through(t, &Gate{})
	_, err := gated.Write([]byte("to"))
	require.NoError(t, err)
	_, err = far.Write([]byte("fro"))
	require.NoError(t, err)
	buf := make([]byte, 3)
	_, err = io.ReadFull(far, buf[:2])
	require.NoError(t, err)
	assert.Equal(t, "to", string(buf[:2]))
	_, err = io.ReadFull(gated, buf)
	require.NoError(t, err)
	assert.Equal(t, "fro", string(buf))
}

func TestShutGateHoldsBothDirections(t *testing.T) {
	g := &Gate{}
	gated, far := through(t, g)
	g.Set(true)
	wrote, read := make(chan error, 1), make(chan []byte, 1)
	go func() {
		_, err := gated.Write([]byte("out"))
		wrote <- err
	}()
	go func() {
		buf := make([]byte, 8)
		n, _ := gated.Read(buf)
		read <- buf[:n]
	}()
	_, err := far.Write([]byte("in"))
	require.NoError(t, err)
	_ = far.SetReadDeadline(time.Now().Add(blink))
	_, err = far.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded, "bytes went out of a shut gate")
	select {
	case got := <-read:
		t.Fatalf("%q came in through a shut gate", got)
	case err := <-wrote:
		t.Fatalf("a write returned (%v) although the gate is shut", err)
	default:
	}

	g.Set(false)
	require.NoError(t, <-wrote)
	assert.Equal(t, "in", string(<-read))
	buf := make([]byte, 3)
	_ = far.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err = io.ReadFull(far, buf)
	require.NoError(t, err)
	assert.Equal(t, "out", string(buf), "what was withheld arrives when the gate opens")
}

func TestDeadlinesAtAShutGate(t *testing.T) {
	for name, test := range map[string]struct {
		set func(net.Conn, time.Time) error
		do  func(net.Conn) error
	}{
		"read":  {net.Conn.SetReadDeadline, func(c net.Conn) error { _, err := c.Read(make([]byte, 8)); return err }},
		"write": {net.Conn.SetWriteDeadline, func(c net.Conn) error { _, err := c.Write([]byte("x")); return err }},
		"both":  {net.Conn.SetDeadline, func(c net.Conn) error { _, err := c.Write([]byte("x")); return err }},
	} {
		t.Run(name, func(t *testing.T) {
			g := &Gate{}
			gated, far := through(t, g)
			_, err := far.Write([]byte("arrives while it is shut"))
			require.NoError(t, err)
			g.Set(true)
			require.NoError(t, test.set(gated, time.Now().Add(blink)))
			begun := time.Now()
			err = test.do(gated)
			assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
			assert.GreaterOrEqual(t, time.Since(begun), blink*9/10)

			// A deadline that is moved while somebody waits counts.
			require.NoError(t, test.set(gated, time.Time{}))
			done := make(chan error, 1)
			go func() { done <- test.do(gated) }()
			time.Sleep(blink)
			require.NoError(t, test.set(gated, time.Now()))
			select {
			case err := <-done:
				assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
			case <-time.After(5 * time.Second):
				t.Fatal("a moved deadline was not noticed")
			}
		})
	}
}

// A reader that gives up while the gate is shut must not make bytes vanish:
// TCP would send them again.
func TestNothingIsLostByATimeoutAtAShutGate(t *testing.T) {
	g := &Gate{}
	gated, far := through(t, g)
	var want, got bytes.Buffer
	buf := make([]byte, 64)
	for i := range 5 {
		g.Set(true)
		piece := bytes.Repeat([]byte{byte('a' + i)}, 100)
		want.Write(piece)
		_, err := far.Write(piece)
		require.NoError(t, err)
		_ = gated.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		_, err = gated.Read(buf)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		g.Set(false)
		_ = gated.SetReadDeadline(time.Now().Add(5 * time.Second))
		for got.Len() < want.Len() {
			n, err := gated.Read(buf)
			require.NoError(t, err)
			got.Write(buf[:n])
		}
		require.Equal(t, want.String(), got.String())
	}
	_ = far.Close()
	_, err := gated.Read(buf)
	assert.ErrorIs(t, err, io.EOF)
}

func TestCloseUnblocksAtAShutGate(t *testing.T) {
	g := &Gate{}
	gated, far := through(t, g)
	g.Set(true)
	_, err := far.Write([]byte("x"))
	require.NoError(t, err)
	failed := make(chan error, 2)
	go func() { _, err := gated.Read(make([]byte, 1)); failed <- err }()
	go func() { _, err := gated.Write([]byte("x")); failed <- err }()
	time.Sleep(blink)
	require.NoError(t, gated.Close())
	for range 2 {
		select {
		case err := <-failed:
			assert.ErrorIs(t, err, net.ErrClosed)
		case <-time.After(5 * time.Second):
			t.Fatal("somebody still waits on a closed connection")
		}
	}
	_ = gated.Close() // may be repeated
}

func TestDialWaitsForTheGate(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close() //nolint:errcheck // nothing to lose
	g := &Gate{}
	g.Set(true)
	ctx, cancel := context.WithTimeout(t.Context(), blink)
	defer cancel()
	_, err = g.Dial(ctx, ln.Addr().String())
	require.ErrorIs(t, err, context.DeadlineExceeded)

	done := make(chan error, 1)
	go func() {
		c, err := g.Dial(t.Context(), ln.Addr().String())
		if err == nil {
			err = c.Close()
		}
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("dialled through a shut gate: %v", err)
	case <-time.After(blink):
	}
	g.Set(true) // no change
	g.Set(false)
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-time.After(5 * time.Second):
		t.Fatal("a dial did not notice that the gate opened")
	}
}
