package sidecar

import (
	"context"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/overlay"
)

func TestIncarnationsFence(t *testing.T) {
	s := idle(t, testConfig(t, "n1", &leader{}))
	two := place(t, s, "job", 2)
	again, calls := making(s, "job", 2)
	got, err := s.enter("job", 2, again)
	require.NoError(t, err)
	assert.Same(t, two, got)
	assert.Zero(t, *calls, "a repeated call made it anew")

	one, calls := making(s, "job", 1)
	_, err = s.enter("job", 1, one)
	require.ErrorIs(t, err, errFenced)
	assert.Zero(t, *calls)

	// A newer number alone ends nothing: only a call that brings guests does.
	_, err = s.enter("job", 3, nil)
	require.ErrorIs(t, err, errUnknown)
	assert.False(t, two.over())

	// What runs for the older one is over before the newer one begins.
	finished := make(chan struct{})
	require.True(t, two.work.run(func(ctx context.Context) {
		<-ctx.Done()
		time.Sleep(20 * time.Millisecond)
		close(finished)
	}))
	three, err := s.enter("job", 3, func() *incarnation {
		select {
		case <-finished:
		default:
			t.Error("the new incarnation began while the old one was at work")
		}
		return s.newIncarnation(&vftv1.Context{Job: "job", Incarnation: 3}, &vftv1.JobSpec{}, nil, phaseBooting)
	})
	require.NoError(t, err)
	assert.NotSame(t, two, three)
	assert.True(t, two.over())
	assert.False(t, two.work.run(func(context.Context) {}), "work can be begun for an ended incarnation")
	_, err = s.enter("job", 2, nil)
	assert.ErrorIs(t, err, errFenced)
	_, err = s.net.Open(overlay.NetworkID{Job: "job", Incarnation: 2}, nil)
	assert.ErrorIs(t, err, overlay.ErrFenced, "the switch still knows the old incarnation")

	// Other jobs are not concerned.
	other := place(t, s, "other", 1)
	assert.False(t, other.over())
	for _, c := range []*vftv1.Context{{Job: "", Incarnation: 1}, {Job: "job"}, nil} {
		_, err := s.admit(c)
		assert.Error(t, err, "%v", c)
	}
	_, err = s.admit(&vftv1.Context{Job: "../../evil", Incarnation: 1})
	assert.ErrorIs(t, err, ckpt.ErrName, "a job's id names files")
}

// TestFenceOutlivesTheProcess: what was killed is refused by the next process too.
func TestFenceOutlivesTheProcess(t *testing.T) {
	l := &leader{answer: good}
	cfg := testConfig(t, "n1", l)
	first, stop := run(t, cfg)
	first.killUpTo("job", 3)
	stop()
	second, stop := run(t, cfg)
	defer stop()
	<-second.Ready()
	create, _ := making(second, "job", 3)
	_, err := second.enter("job", 3, create)
	assert.ErrorIs(t, err, errFenced)
	create, _ = making(second, "job", 4)
	_, err = second.enter("job", 4, create)
	assert.NoError(t, err)
}

func TestKillFencesLaterCalls(t *testing.T) {
	for name, test := range map[string]struct {
		current, kill uint64 // current 0: none
		ends          bool
		refused       []uint64
	}{
		"the current one":    {2, 2, true, []uint64{1, 2}},
		"all before":         {2, 5, true, []uint64{2, 4, 5}},
		"an older one":       {2, 1, false, []uint64{1}},
		"before it was here": {0, 2, false, []uint64{1, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			s := idle(t, testConfig(t, "n1", &leader{}))
			var current *incarnation
			if test.current > 0 {
				current = place(t, s, "job", test.current)
			}
			s.killUpTo("job", test.kill)
			if current != nil {
				assert.Equal(t, test.ends, current.over())
			}
			for _, n := range test.refused {
				create, calls := making(s, "job", n)
				_, err := s.enter("job", n, create)
				assert.ErrorIs(t, err, errFenced, "incarnation %d", n)
				assert.Zero(t, *calls)
			}
			create, _ := making(s, "job", max(test.kill, test.current)+1)
			_, err := s.enter("job", max(test.kill, test.current)+1, create)
			assert.NoError(t, err)
		})
	}
}

func TestForget(t *testing.T) {
	s := idle(t, testConfig(t, "n1", &leader{}))
	inc := place(t, s, "job", 2)
	require.NoError(t, inc.save())
	assert.ErrorContains(t, s.forget("job"), "still has guests here")
	assert.FileExists(t, s.statePath("job"))
	s.killUpTo("job", 2)
	require.NoError(t, s.forget("job"))
	assert.NoFileExists(t, s.statePath("job"))
	create, _ := making(s, "job", 2)
	_, err := s.enter("job", 2, create)
	assert.ErrorIs(t, err, errFenced, "a late call brings a forgotten job back")
	require.NoError(t, s.forget("job"), "may be repeated")
}

func code(err error) connect.Code { return connect.CodeOf(err) }

func TestServiceRefusesThePast(t *testing.T) {
	s := idle(t, testConfig(t, "n1", &leader{}))
	h := NewService(s)
	at := func(n uint64) *vftv1.Context { return &vftv1.Context{Job: "job", Incarnation: n} }
	_, err := h.Prepare(t.Context(), connect.NewRequest(&vftv1.PrepareRequest{Context: at(1), Epoch: 1}))
	assert.Equal(t, connect.CodeNotFound, code(err))
	place(t, s, "job", 2)
	_, err = h.KillGuests(t.Context(), connect.NewRequest(&vftv1.KillGuestsRequest{Context: at(2), Forget: true}))
	require.NoError(t, err)
	assert.Empty(t, s.incarnations())

	for name, call := range map[string]func() error{
		"BootGuests": func() error {
			_, err := h.BootGuests(t.Context(), connect.NewRequest(&vftv1.BootGuestsRequest{Context: at(2)}))
			return err
		},
		"RestoreGuests": func() error {
			_, err := h.RestoreGuests(t.Context(), connect.NewRequest(&vftv1.RestoreGuestsRequest{Context: at(2)}))
			return err
		},
		"ContinueGuests": func() error {
			_, err := h.ContinueGuests(t.Context(), connect.NewRequest(&vftv1.ContinueGuestsRequest{Context: at(2)}))
			return err
		},
		"StartProgram": func() error {
			_, err := h.StartProgram(t.Context(), connect.NewRequest(&vftv1.StartProgramRequest{Context: at(2)}))
			return err
		},
		"Prepare": func() error {
			_, err := h.Prepare(t.Context(), connect.NewRequest(&vftv1.PrepareRequest{Context: at(2), Epoch: 1}))
			return err
		},
		"Hold": func() error {
			_, err := h.Hold(t.Context(), connect.NewRequest(&vftv1.HoldRequest{Context: at(2), Epoch: 1}))
			return err
		},
		"Cut": func() error {
			_, err := h.Cut(t.Context(), connect.NewRequest(&vftv1.CutRequest{Context: at(2), Epoch: 1}))
			return err
		},
		"Release": func() error {
			_, err := h.Release(t.Context(), connect.NewRequest(&vftv1.ReleaseRequest{Context: at(2), Epoch: 1}))
			return err
		},
		"WaitParts": func() error {
			_, err := h.WaitParts(t.Context(), connect.NewRequest(&vftv1.WaitPartsRequest{Context: at(2), Epoch: 1}))
			return err
		},
		"AbortEpoch": func() error {
			_, err := h.AbortEpoch(t.Context(), connect.NewRequest(&vftv1.AbortEpochRequest{Context: at(2), Epoch: 1}))
			return err
		},
		"SignalProgram": func() error {
			_, err := h.SignalProgram(t.Context(), connect.NewRequest(&vftv1.SignalProgramRequest{Job: "job", Incarnation: 2}))
			return err
		},
	} {
		assert.Equal(t, connect.CodeFailedPrecondition, code(call()), name)
	}
	assert.Empty(t, s.incarnations(), "a refused call made an incarnation")

	// Aborting where the guests are gone is what is wanted.
	_, err = h.AbortEpoch(t.Context(), connect.NewRequest(&vftv1.AbortEpochRequest{Context: at(3), Epoch: 1}))
	assert.NoError(t, err)
}

// Calls that are repeated wait for the same work and hear the same of it.
func TestBootFailsOnce(t *testing.T) {
	s := idle(t, testConfig(t, "n1", &leader{}))
	req := &vftv1.BootGuestsRequest{
		Context: &vftv1.Context{Job: "job", Incarnation: 1}, Spec: &vftv1.JobSpec{Id: "job"},
		Members: []*vftv1.Member{{Guest: 0, Node: "n1"}, {Guest: 1, Node: "n2", Address: "n2:1"}},
	}
	_, first := s.bootGuests(t.Context(), req)
	require.ErrorContains(t, first, "vft image build", "there is no image")
	assert.ErrorContains(t, first, "guest 0")
	_, second := s.bootGuests(t.Context(), req)
	assert.Same(t, first, second)
}
