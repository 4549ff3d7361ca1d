package sidecar

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/quiesce"
	"github.com/mpirun-vft/vft/vm"
)

func piece(offset int64, size int) *vftv1.AttachInput {
	return &vftv1.AttachInput{Offset: offset, Data: make([]byte, size)}
}

func TestInputQueue(t *testing.T) {
	q := newInputQueue()
	ctx, cancel := context.WithCancel(t.Context())
	for i := range int64(3) {
		q.put(piece(i, 10))
	}
	for i := range int64(3) {
		assert.Equal(t, i, q.get(ctx).GetOffset(), "out of order")
	}
	got := make(chan *vftv1.AttachInput)
	go func() { got <- q.get(ctx) }()
	q.put(piece(7, 0))
	assert.Equal(t, int64(7), (<-got).GetOffset())
	go func() { got <- q.get(ctx) }()
	cancel()
	assert.Nil(t, <-got)
}

func TestInputQueueIsBounded(t *testing.T) {
	q := newInputQueue()
	q.put(piece(0, 2*inputLimit)) // one piece always fits, or nothing would go on
	q.put(piece(1, 1))
	assert.Equal(t, int64(0), q.get(t.Context()).GetOffset())
	for i := range int64(5) {
		q.put(piece(i, inputLimit/2))
	}
	assert.Equal(t, int64(0), q.get(t.Context()).GetOffset())
	assert.Equal(t, int64(1), q.get(t.Context()).GetOffset())
	q.put(piece(9, 1)) // there is room again
	assert.Equal(t, int64(9), q.get(t.Context()).GetOffset(), "what did not fit was kept")
	assert.Zero(t, q.bytes)
}

func TestLatest(t *testing.T) {
	ch := make(chan int, 1)
	for i := range 3 {
		latest(ch, i)
	}
	assert.Equal(t, 2, <-ch)
	assert.Empty(t, ch)
}

// messages is a stream that both ends of a copy see.
type messages struct {
	sent [][]byte
	end  error
}

func (m *messages) send(p []byte) error {
	m.sent = append(m.sent, bytes.Clone(p)) // the writer's buffer is used again
	return nil
}

func (m *messages) next() ([]byte, error) {
	if len(m.sent) == 0 {
		return nil, m.end
	}
	p := m.sent[0]
	m.sent = m.sent[1:]
	return p, nil
}

func TestMessagesRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 3*chunkSize + 17} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			data := make([]byte, size)
			for i := range data {
				data[i] = byte(rng.Uint32())
			}
			m := &messages{end: io.EOF}
			n, err := (&messageWriter{send: m.send}).Write(data)
			require.NoError(t, err)
			assert.Equal(t, size, n)
			for _, p := range m.sent {
				assert.LessOrEqual(t, len(p), chunkSize)
			}
			m.sent = append([][]byte{nil, {}}, m.sent...) // empty messages are no end
			require.NoError(t, iotest.TestReader(&messageReader{next: m.next}, data))

			m = &messages{end: io.EOF}
			require.NoError(t, copyChunks(&messageWriter{send: m.send}, bytes.NewReader(data)))
			back, err := io.ReadAll(&messageReader{next: m.next, rest: []byte("first")})
			require.NoError(t, err)
			assert.Equal(t, append([]byte("first"), data...), back)
		})
	}
}

func TestMessagesThatBreakOff(t *testing.T) {
	broken := errors.New("broken")
	got, err := io.ReadAll(&messageReader{next: (&messages{sent: [][]byte{[]byte("abc")}, end: broken}).next})
	assert.ErrorIs(t, err, broken)
	assert.Equal(t, "abc", string(got))
	assert.Equal(t, io.EOF, endOf(nil))
	assert.Equal(t, broken, endOf(broken))

	calls := 0
	w := &messageWriter{send: func([]byte) error {
		if calls++; calls == 2 {
			return broken
		}
		return nil
	}}
	n, err := w.Write(make([]byte, 3*chunkSize))
	assert.ErrorIs(t, err, broken)
	assert.Equal(t, chunkSize, n)
	assert.Equal(t, 2, calls)
}

func TestFuture(t *testing.T) {
	owner := newScope(t.Context())
	release := make(chan struct{})
	f := begin(owner, func(context.Context) (int, error) { <-release; return 7, nil })

	// A caller that goes away does not end the work.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := f.wait(ctx)
	require.ErrorIs(t, err, context.Canceled)
	close(release)
	for range 2 {
		v, err := f.wait(t.Context())
		require.NoError(t, err)
		assert.Equal(t, 7, v)
	}

	failed := begin(owner, func(context.Context) (int, error) { return 0, io.ErrUnexpectedEOF })
	_, err = failed.wait(t.Context())
	assert.ErrorIs(t, err, io.ErrUnexpectedEOF)

	owner.end()
	late := begin(owner, func(context.Context) (int, error) { t.Error("work for an ended scope"); return 0, nil })
	_, err = late.wait(t.Context())
	assert.ErrorIs(t, err, context.Canceled)
}

func TestScopeEndWaits(t *testing.T) {
	s := newScope(t.Context())
	done := false
	require.True(t, s.run(func(ctx context.Context) {
		<-ctx.Done()
		time.Sleep(20 * time.Millisecond)
		done = true
	}))
	s.end()
	assert.True(t, done)
	s.end() // may be repeated
	assert.False(t, s.run(func(context.Context) {}))
}

func TestCoded(t *testing.T) {
	assert.NoError(t, coded(nil))
	for err, want := range map[error]connect.Code{
		errFenced:                connect.CodeFailedPrecondition,
		quiesce.ErrStale:         connect.CodeFailedPrecondition,
		errUnknown:               connect.CodeNotFound,
		syscall.ENOSPC:           connect.CodeResourceExhausted,
		context.DeadlineExceeded: connect.CodeDeadlineExceeded,
		context.Canceled:         connect.CodeCanceled,
		io.ErrUnexpectedEOF:      connect.CodeInternal,
		connect.NewError(connect.CodeUnavailable, io.EOF): connect.CodeUnavailable,
	} {
		got := coded(fmt.Errorf("guest 3: %w", err))
		assert.Equal(t, want, connect.CodeOf(got), "%v", err)
		assert.ErrorIs(t, got, err)
		assert.ErrorContains(t, got, "guest 3")
	}
}

func TestSavedState(t *testing.T) {
	s := idle(t, testConfig(t, "n1", &leader{}))
	inc := place(t, s, "job", 4)
	inc.applied, inc.spec = 17, &vftv1.JobSpec{Id: "job", MemoryMib: 512}
	require.NoError(t, inc.save())
	st, err := readState(s.statePath("job"))
	require.NoError(t, err)
	assert.Equal(t, []any{"job", uint64(4), uint64(17), phaseRunning}, []any{st.Job, st.Incarnation, st.Applied, st.Phase})
	assert.Contains(t, string(st.Spec), "512")
	assert.Len(t, st.Members, 1)

	require.NoError(t, s.removeState("job"))
	_, err = readState(s.statePath("job"))
	assert.Error(t, err)
	require.NoError(t, s.removeState("job"), "may be repeated")
}

func TestChooseEngine(t *testing.T) {
	cfg := testConfig(t, "n1", &leader{})
	s := idle(t, cfg)
	_, err := s.chooseEngine(vftv1.Engine_ENGINE_UNSPECIFIED)
	assert.ErrorContains(t, err, "vft node probe", "nothing was probed")
	s.cfg.Capabilities.Engines = []vm.EngineSupport{
		{Engine: vm.EngineStopCopy, OK: true}, {Engine: vm.EngineBackground, Why: "userfaultfd"}, {Engine: vm.EnginePreCopy, OK: true},
	}
	got, err := s.chooseEngine(vftv1.Engine_ENGINE_UNSPECIFIED)
	require.NoError(t, err)
	assert.Equal(t, vm.EnginePreCopy, got, "not the one with the shortest pause that works")
	_, err = s.chooseEngine(vftv1.Engine_ENGINE_BACKGROUND)
	assert.ErrorContains(t, err, "userfaultfd")
	for _, e := range []vftv1.Engine{vftv1.Engine_ENGINE_STOP_COPY, vftv1.Engine_ENGINE_PRE_COPY} {
		got, err := s.chooseEngine(e)
		require.NoError(t, err)
		assert.Equal(t, e, protoEngine(got))
	}
}
