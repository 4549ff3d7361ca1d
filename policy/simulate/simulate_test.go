package simulate

import (
	"fmt"
	"testing"
	"time"
)

// The policy must come near the best fixed interval that hindsight can find,
// and must never be much worse than Daly's interval without alarms, however bad
// the alarms are.
func TestPolicyAgainstHindsight(t *testing.T) {
	for _, nodes := range []int{1000, 16000} {
		for _, q := range []struct{ precision, recall float64 }{{0, 0}, {0.2, 0.3}, {0.7, 0.9}, {1, 1}} {
			t.Run(fmt.Sprintf("%d nodes p=%.1f r=%.1f", nodes, q.precision, q.recall), func(t *testing.T) {
				c := Compare(nodes, q.precision, q.recall, max(1, 2000/nodes))
				t.Logf("%+v", c)
				// An all but perfect predictor leaves so little to lose that what
				// it takes to learn how good it is shows.
				if c.Policy > 1.03*c.Best && c.Policy > c.Best+0.001 {
					t.Errorf("policy wastes %.4f, the best fixed interval %.4f: ratio %.3f, want at most 1.03", c.Policy, c.Best, c.Policy/c.Best)
				}
				if c.Policy > 1.01*c.Daly {
					t.Errorf("policy wastes %.4f, Daly's interval without alarms %.4f: ratio %.3f, want at most 1.01", c.Policy, c.Daly, c.Policy/c.Daly)
				}
			})
		}
	}
}

// Without failures nothing is lost but what checkpoints cost, and the same seed
// gives the same history.
func TestRun(t *testing.T) {
	quiet := NewTrace(Failures{MTBF: 250 * Year}, Year/100, 1)
	if n := quiet.Failures(); n != 0 {
		t.Fatalf("%d failures in four days at one every 250 years", n)
	}
	j := ExampleJob(time.Hour)
	o := Run(quiet, j, Strategy{Fixed: time.Hour})
	want := j.Checkpoint.Seconds() / (j.Checkpoint.Seconds() + 3600)
	if d := o.Wasted - want; d > 1e-3 || d < -1e-3 {
		t.Errorf("wasted %.5f, want %.5f", o.Wasted, want)
	}
	f := Failures{MTBF: 10 * time.Hour, Precision: 0.5, Recall: 0.5, Lead: time.Minute}
	a, b := NewTrace(f, Year/10, 7), NewTrace(f, Year/10, 7)
	if x, y := Run(a, j, Strategy{Alarms: true}), Run(b, j, Strategy{Alarms: true}); x != y {
		t.Errorf("%+v and %+v", x, y)
	}
	if n := float64(a.Failures()); n < 50 || n > 130 {
		t.Errorf("%v failures in 876 h at one every 10 h", n)
	}
}
