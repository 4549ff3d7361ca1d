package overlay

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func FuzzFrames(f *testing.F) {
	f.Add(appendFrame(appendFrame(nil, testFrame(0, 1, 1, 60)), testFrame(1, 0, 1, 60)))
	f.Add([]byte{0, 0, 0, 3, 1, 2})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		whole, err := wholeFrames(data)
		require.LessOrEqual(t, whole, len(data))
		if err == nil && whole < len(data) {
			size, err := frameSize(data[whole:])
			require.NoError(t, err)
			require.Zero(t, size, "a whole frame was left")
		}
		run := data[:whole]
		var again []byte
		frames := splitFrames(nil, run)
		for _, frame := range frames {
			again = appendFrame(again, frame)
		}
		require.True(t, bytes.Equal(run, again))
		if n, err := countFrames(run); err == nil {
			require.Len(t, frames, n)
			half, count := prefix(run, len(run)/2)
			require.LessOrEqual(t, half, len(run)/2)
			require.LessOrEqual(t, count, n)
		}
	})
}

func FuzzLink(f *testing.F) {
	f.Add(appendHello(nil, hello{session: 1, dial: 2, link: 3, node: "a"}))
	f.Add(appendWelcome(nil, welcome{session: 1, known: true, received: 7, node: "b"}))
	f.Add(refusal(ErrClosed))
	stream := appendNetwork(nil, 1, 1, NetworkID{"job", 1})
	run := appendFrame(nil, testFrame(0, 1, 1, 60))
	stream = append(appendFramesHeader(stream, 1, 2, 0, 1, len(run)), run...)
	stream = appendMark(stream, messageMark, 1, 3, 1)
	stream = append(appendFramesHeader(stream, 1, 2, 0, 1, len(run)), run...) // again
	stream = appendMark(stream, messageUnmark, 1, 4, 1)
	f.Add(stream)
	f.Add(appendPong(appendAck(appendPing(nil, 1), 2), 3, 4))
	f.Add(appendFramesHeader(nil, 9, 1, 0, 1, maxBody))
	s, err := New(Config{Node: "b", MAC: testMAC, Dial: (&cluster{cut: map[string]bool{"": true}}).dial})
	require.NoError(f, err)
	f.Cleanup(s.Close)
	_, err = s.Open(NetworkID{"job", 1}, []Member{{0, "a", ""}, {1, "b", ""}})
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, data []byte) {
		l := &inLink{sw: s, hello: hello{node: "a", link: 1}, state: &inState{networks: map[uint32]*resolved{}}}
		for len(data) > 0 {
			m, size, err := parseMessage(data)
			if err != nil || size == 0 {
				return
			}
			require.LessOrEqual(t, size, len(data))
			_, _ = m.hello()
			_, _ = m.welcome()
			_, _ = m.answer()
			_, _ = m.ping()
			before := l.state.received
			if m.kind != messagePing { // needs a connection to answer on
				if l.handle(m) != nil {
					require.Equal(t, before, l.state.received)
					return
				}
				require.LessOrEqual(t, l.state.received, before+1)
			}
			data = data[size:]
		}
	})
}

// FuzzGreeting reads what a stranger sends first.
func FuzzGreeting(f *testing.F) {
	f.Add(appendHello(nil, hello{session: 1, dial: 2, link: 3, node: "a"}))
	f.Add(append(appendWelcome(nil, welcome{session: 1, node: "b"}), 1, 2, 3))
	f.Add(appendHeader(nil, messageHello, 0, maxBody))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		m, err := readMessage(r)
		if err != nil {
			return
		}
		require.Equal(t, len(data)-r.Len(), messageHeader+int(binary.BigEndian.Uint32(data)&0xffffff), "it read on")
		if h, err := m.hello(); err == nil {
			require.Equal(t, data[messageHeader:len(data)-r.Len()], appendHello(nil, h)[messageHeader:])
		}
		if w, err := m.welcome(); err == nil {
			require.Equal(t, data[messageHeader:len(data)-r.Len()], appendWelcome(nil, w)[messageHeader:])
		}
	})
}

// fuzzSocket gives in piece by piece and keeps out.
type fuzzSocket struct {
	in    []byte
	piece int
	out   []byte
}

func (s *fuzzSocket) AwaitRead(func() bool) error  { return io.EOF }
func (s *fuzzSocket) AwaitWrite(func() bool) error { return io.EOF }
func (s *fuzzSocket) Unread() (int, error)         { return 0, nil }
func (s *fuzzSocket) Shutdown()                    {}
func (s *fuzzSocket) Interrupt()                   {}
func (s *fuzzSocket) Close() error                 { return nil }

func (s *fuzzSocket) Read(b []byte) (int, error) {
	n := copy(b, s.in[:min(s.piece, len(s.in))])
	s.in = s.in[n:]
	return n, nil
}

func (s *fuzzSocket) Writev(iov []unix.Iovec) (n int, err error) {
	for _, v := range iov {
		s.out = append(s.out, unsafe.Slice(v.Base, v.Len)...)
		n += int(v.Len)
	}
	return n, nil
}

// FuzzGuest lets a guest send anything: its neighbour gets, in order, all
// frames that are from the guest and for it, and nothing else.
func FuzzGuest(f *testing.F) {
	good := appendFrame(appendFrame(nil, testFrame(0, 1, 1, 60)), testFrame(0, -1, 2, 60))
	f.Add(good, uint16(7))
	f.Add(append(good, appendFrame(nil, testFrame(1, 0, 1, 60))...), uint16(1000))
	f.Add(append(good, 0, 0, 0, 5, 1, 2, 3, 4, 5, 0, 1, 255, 255), uint16(3))
	s, err := New(Config{Node: "a", MAC: testMAC, Dial: (&cluster{}).dial})
	require.NoError(f, err)
	f.Cleanup(s.Close)
	f.Fuzz(func(t *testing.T, data []byte, piece uint16) {
		n, err := newNetwork(s, NetworkID{"job", 1}, []Member{{0, "a", ""}, {1, "a", ""}}, false)
		require.NoError(t, err)
		defer n.cancel()
		from, to := n.members[0].port, n.members[1].port
		sink := &fuzzSocket{}
		to.connect(sink)
		from.connect(&fuzzSocket{in: data, piece: 1 + int(piece)})
		for state := readMore; state == readMore; {
			state, _ = from.readOnce(false)
		}
		var want []byte
		for rest := data; len(rest) >= 4; {
			size := int(binary.BigEndian.Uint32(rest))
			if size > maxFrame || len(rest) < 4+size {
				break
			}
			if frame := rest[4 : 4+size]; size >= 14 && bytes.Equal(frame[6:12], testMAC(0)) && (bytes.Equal(frame[:6], testMAC(1)) || frame[0]&1 == 1) {
				want = append(want, rest[:4+size]...)
			}
			rest = rest[4+size:]
		}
		require.True(t, bytes.Equal(want, sink.out), "of %x came %x", data, sink.out)
	})
}
