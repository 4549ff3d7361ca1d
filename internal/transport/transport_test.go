package transport

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/internal/pki"
)

func newAuthority(t *testing.T) *pki.Authority {
	t.Helper()
	a, err := pki.NewAuthority("test", time.Now())
	require.NoError(t, err)
	return a
}

func newConfig(t *testing.T, a *pki.Authority, name string) *tls.Config {
	t.Helper()
	id, err := a.Issue(name, time.Now())
	require.NoError(t, err)
	conf, err := id.TLS()
	require.NoError(t, err)
	return conf
}

func listen(t *testing.T, e *Endpoint, protos ...string) *Listener {
	t.Helper()
	if len(protos) == 0 {
		protos = []string{ProtoRPC, ProtoRaft, ProtoLink}
	}
	l, err := e.Listen(t.Context(), "127.0.0.1:0", slog.New(slog.DiscardHandler), protos...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// accepted is what a lane hands out.
func accepted(lane net.Listener) <-chan net.Conn {
	ch := make(chan net.Conn, 1)
	go func() {
		defer close(ch)
		if c, err := lane.Accept(); err == nil {
			ch <- c
		}
	}()
	return ch
}

func take(t *testing.T, ch <-chan net.Conn) net.Conn {
	t.Helper()
	select {
	case c, ok := <-ch:
		require.True(t, ok, "the lane was closed")
		t.Cleanup(func() { _ = c.Close() })
		return c
	case <-time.After(5 * time.Second):
		t.Fatal("no connection came")
		return nil
	}
}

func TestOnePortThreeLanes(t *testing.T) {
	a := newAuthority(t)
	l := listen(t, New(newConfig(t, a, "node:n1"), nil))
	client := New(newConfig(t, a, "node:n2"), nil)
	for _, proto := range []string{ProtoRaft, ProtoLink, ProtoRPC, ProtoLink} {
		ch := accepted(l.Lane(proto))
		conn, err := client.Dial(t.Context(), l.Addr().String(), proto)
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		_, err = io.WriteString(conn, proto)
		require.NoError(t, err)
		got := take(t, ch)
		state := got.(*tls.Conn).ConnectionState()
		assert.Equal(t, "node:n2", PeerName(&state))
		assert.Equal(t, uint16(tls.VersionTLS13), state.Version)
		text := make([]byte, len(proto))
		_, err = io.ReadFull(got, text)
		require.NoError(t, err)
		assert.Equal(t, proto, string(text))
		assert.Equal(t, l.Addr(), l.Lane(proto).Addr())
	}
	assert.Empty(t, PeerName(nil))
	assert.Empty(t, PeerName(&tls.ConnectionState{}))
}

// Raft and links are for nodes: who may only call is not let in there, and
// cannot take a node's place.
func TestPeopleAreNoNodes(t *testing.T) {
	a := newAuthority(t)
	l := listen(t, New(newConfig(t, a, "node:n1"), nil))
	for _, name := range []string{"user:alice", "admin:root"} {
		person := New(newConfig(t, a, name), nil)
		for _, proto := range []string{ProtoRaft, ProtoLink} {
			ch := accepted(l.Lane(proto))
			conn, err := person.Dial(t.Context(), l.Addr().String(), proto)
			require.NoError(t, err) // the server's refusal comes after the handshake
			_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			_, err = conn.Read(make([]byte, 1))
			assert.ErrorIs(t, err, io.EOF, "%s speaks %s", name, proto)
			_ = conn.Close()
			node, err := New(newConfig(t, a, "node:n2"), nil).Dial(t.Context(), l.Addr().String(), proto)
			require.NoError(t, err)
			take(t, ch)
			_ = node.Close()
		}
		posing := listen(t, person)
		_, err := New(newConfig(t, a, "node:n2"), nil).Dial(t.Context(), posing.Addr().String(), ProtoRPC)
		var bad *tls.CertificateVerificationError
		assert.ErrorAs(t, err, &bad, "%s is taken for a server", name)
	}
}

func TestRPCLaneServesHTTP2(t *testing.T) {
	a := newAuthority(t)
	l := listen(t, New(newConfig(t, a, "node:n1"), nil))
	protocols := &http.Protocols{}
	protocols.SetHTTP2(true)
	srv := &http.Server{Protocols: protocols, ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto+" "+PeerName(r.TLS)) },
	)}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(l.Lane(ProtoRPC)) }()
	defer func() { _ = srv.Close(); <-served }()
	client := New(newConfig(t, a, "user:alice"), nil)
	defer client.Close()
	resp, err := client.HTTP().Get("https://" + l.Addr().String() + "/")
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	assert.Equal(t, "HTTP/2.0 user:alice", string(body))
}

func TestProtocolThatNobodyServes(t *testing.T) {
	a := newAuthority(t)
	l := listen(t, New(newConfig(t, a, "node:n1"), nil), ProtoRPC)
	_, err := New(newConfig(t, a, "node:n2"), nil).Dial(t.Context(), l.Addr().String(), ProtoRaft)
	assert.ErrorContains(t, err, l.Addr().String())
	assert.ErrorContains(t, err, "application protocol")
}

// With TLS 1.3 a client hears of its refusal when it first reads.
func firstRead(t *testing.T, e *Endpoint, address string) error {
	t.Helper()
	conn, err := e.Dial(t.Context(), address, ProtoLink)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // refused or not, it is over
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err = conn.Read(make([]byte, 1))
	return err
}

func TestStrangersAreRefused(t *testing.T) {
	mine, foreign := newAuthority(t), newAuthority(t)
	l := listen(t, New(newConfig(t, mine, "node:n1"), nil))
	ch := accepted(l.Lane(ProtoLink))

	good := newConfig(t, mine, "node:n2")
	stranger := newConfig(t, foreign, "node:n2")
	stranger.RootCAs = good.RootCAs // it trusts us, we do not trust it
	none := newConfig(t, mine, "node:n2")
	none.Certificates = nil
	for name, conf := range map[string]*tls.Config{"of another authority": stranger, "no certificate": none} {
		err := firstRead(t, New(conf, nil), l.Addr().String())
		assert.ErrorContains(t, err, "remote error: tls", name)
	}
	_, err := New(newConfig(t, foreign, "node:n2"), nil).Dial(t.Context(), l.Addr().String(), ProtoLink)
	var bad *tls.CertificateVerificationError
	assert.ErrorAs(t, err, &bad, "the dialler takes a server of another authority")
	select {
	case <-ch:
		t.Fatal("a stranger reached the lane")
	default:
	}

	// They leave the port in order for others.
	conn, err := New(good, nil).Dial(t.Context(), l.Addr().String(), ProtoLink)
	require.NoError(t, err)
	defer conn.Close() //nolint:errcheck // the test is over
	take(t, ch)
}

func TestGarbageAtThePort(t *testing.T) {
	a := newAuthority(t)
	l := listen(t, New(newConfig(t, a, "node:n1"), nil))
	ch := accepted(l.Lane(ProtoRaft))
	for name, garbage := range map[string]string{
		"text": "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "zeros": string(make([]byte, 4096)),
		"record of 16 KiB that never comes": "\x16\x03\x01\x40\x00\x01",
	} {
		conn, err := net.Dial("tcp", l.Addr().String())
		require.NoError(t, err)
		_, err = io.WriteString(conn, garbage)
		require.NoError(t, err, name)
		_ = conn.(*net.TCPConn).CloseWrite() // fails when we were thrown out already
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, err = io.Copy(io.Discard, conn) // an alert at most, then the end
		assert.NotErrorIs(t, err, os.ErrDeadlineExceeded, "%s: the connection stays open", name)
		_ = conn.Close()
	}
	silent, err := net.Dial("tcp", l.Addr().String()) // holds nobody up
	require.NoError(t, err)
	defer silent.Close() //nolint:errcheck // the test is over
	conn, err := New(newConfig(t, a, "node:n2"), nil).Dial(t.Context(), l.Addr().String(), ProtoRaft)
	require.NoError(t, err)
	defer conn.Close() //nolint:errcheck // the test is over
	take(t, ch)
}

func TestClosing(t *testing.T) {
	a := newAuthority(t)
	conf := newConfig(t, a, "node:n1")
	l := listen(t, New(conf, nil))
	raft, link := accepted(l.Lane(ProtoRaft)), accepted(l.Lane(ProtoLink))

	// A closed lane ends its Accept and leaves the others alone.
	require.NoError(t, l.Lane(ProtoRaft).Close())
	_, open := <-raft
	require.False(t, open)
	require.NoError(t, l.Lane(ProtoRaft).Close())
	client := New(conf, nil)
	refused, err := client.Dial(t.Context(), l.Addr().String(), ProtoRaft)
	require.NoError(t, err)
	_, err = refused.Read(make([]byte, 1))
	assert.ErrorIs(t, err, io.EOF)
	_ = refused.Close()
	conn, err := client.Dial(t.Context(), l.Addr().String(), ProtoLink)
	require.NoError(t, err)
	defer conn.Close() //nolint:errcheck // the test is over
	take(t, link)

	// Close does not wait for those in a handshake or in front of a lane
	// that nobody accepts from.
	silent, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer silent.Close() //nolint:errcheck // the test is over
	waiting, err := client.Dial(t.Context(), l.Addr().String(), ProtoRPC)
	require.NoError(t, err)
	defer waiting.Close() //nolint:errcheck // the test is over
	last := accepted(l.Lane(ProtoLink))
	begun := time.Now()
	require.NoError(t, l.Close())
	assert.Less(t, time.Since(begun), handshakeTimeout/2)
	_, open = <-last
	assert.False(t, open, "Accept goes on after Close")
	_, err = client.Dial(t.Context(), l.Addr().String(), ProtoLink)
	assert.Error(t, err)
	require.NoError(t, l.Close())
}

func TestShutGateLooksLikeADeadHost(t *testing.T) {
	a := newAuthority(t)
	gate := &Gate{}
	l := listen(t, New(newConfig(t, a, "node:n1"), gate))
	client := New(newConfig(t, a, "node:n2"), nil)
	ch := accepted(l.Lane(ProtoLink))
	gate.Set(true)
	ctx, cancel := context.WithTimeout(t.Context(), blink)
	defer cancel()
	_, err := client.Dial(ctx, l.Addr().String(), ProtoLink)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	gate.Set(false)
	conn, err := client.Dial(t.Context(), l.Addr().String(), ProtoLink)
	require.NoError(t, err)
	defer conn.Close() //nolint:errcheck // the test is over
	far := take(t, ch)

	// A TLS connection survives a time-out behind the gate.
	_, err = io.WriteString(conn, "before")
	require.NoError(t, err)
	gate.Set(true)
	_ = far.SetReadDeadline(time.Now().Add(blink))
	buf := make([]byte, 6)
	_, err = io.ReadFull(far, buf)
	require.Error(t, err)
	gate.Set(false)
	_ = far.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err = io.ReadFull(far, buf)
	require.NoError(t, err)
	assert.Equal(t, "before", string(buf))
}
