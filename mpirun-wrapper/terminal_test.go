package wrapper

import (
	"testing"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func TestScreen(t *testing.T) {
	const erase = "\r\x1b[K"
	tests := []struct {
		name             string
		outTTY, errTTY   bool
		do               func(*screen)
		stdout, terminal string
	}{
		{"progress goes away for output", true, true, func(s *screen) {
			s.progress("p1")
			_ = s.out([]byte("line\n"))
			s.progress("p2")
			s.end()
		}, "", erase + "p1" + erase + "line\n" + erase + "p2" + erase},
		{"no progress in the middle of a line", true, true, func(s *screen) {
			_ = s.out([]byte("Name: "))
			s.progress("p")
			s.line("event")
			s.progress("p")
		}, "", "Name: " + "\nvft: event\n" + erase + "p"},
		{"stdout elsewhere does not disturb", false, true, func(s *screen) {
			s.progress("p")
			_ = s.out([]byte("data"))
			s.progress("q")
		}, "data", erase + "p" + erase + "q"},
		{"no terminal, no progress", false, false, func(s *screen) {
			s.progress("p")
			s.line("a\nb")
			_ = s.err([]byte("half"))
			s.line("c")
		}, "", "vft: a b\nhalf\nvft: c\n"},
		{"long progress is cut", false, true, func(s *screen) { s.progress("12345678901234567890") }, "", erase + "123456789"},
		{"quiet", true, true, func(s *screen) {
			s.quiet = true
			s.progress("p")
			s.line("x")
		}, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, terminal syncBuffer
			s := newScreen(&stdout, &terminal, false)
			s.outTTY, s.errTTY = tt.outTTY, tt.errTTY
			if tt.outTTY {
				s.stdout = &terminal
			}
			s.width = func() int { return 10 }
			tt.do(s)
			if stdout.String() != tt.stdout || terminal.String() != tt.terminal {
				t.Errorf("stdout %q, terminal %q; want %q, %q", stdout.String(), terminal.String(), tt.stdout, tt.terminal)
			}
		})
	}
}

func TestProgressLine(t *testing.T) {
	now := time.Unix(1000, 0)
	r := &run{plan: &Plan{Ranks: 4, Guests: make([]GuestPlan, 2)}}
	s := &snapshot{job: &vftv1.Job{
		Phase:  vftv1.JobPhase_JOB_PHASE_RUNNING,
		Guests: []*vftv1.Guest{{Node: "a"}, {Index: 1, Node: "b"}},
		Epochs: []*vftv1.Epoch{
			{Number: 3, State: vftv1.EpochState_EPOCH_STATE_COMMITTED, EndedAt: now.Add(-12 * time.Second).UnixNano()},
			{Number: 4, State: vftv1.EpochState_EPOCH_STATE_ABORTED},
		},
		Restarts: 1,
	}}
	want := "vft: running, 4 ranks, 2 guests on 2 nodes, 1:02:05, checkpoint 3, 0:12 ago, 1 restart"
	if got := r.progressLine(s, time.Hour+2*time.Minute+5*time.Second, now); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
