package policy

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func near(t *testing.T, what string, got time.Duration, want, tolerance float64) {
	t.Helper()
	if math.Abs(got.Seconds()-want) > tolerance {
		t.Errorf("%s is %v, want %.1f s", what, got, want)
	}
}

func TestIntervals(t *testing.T) {
	const c, mtbf = 30 * time.Second, 4 * time.Hour
	near(t, "Young's interval", Young(c, mtbf), 929.5, 0.1)
	near(t, "Daly's interval", Daly(c, mtbf), 909.6, 0.1)
	near(t, "Daly's interval when checkpoints cost more than failures", Daly(3*mtbf, mtbf), mtbf.Seconds(), 0)
	plain := Interval(Costs{Checkpoint: c}, Predictor{}, mtbf)
	near(t, "the interval without alarms", plain, 909.6, 0.1)
	told := Interval(Costs{Checkpoint: c}, Predictor{Recall: 0.7}, mtbf)
	if r := (told + c).Seconds() / (plain + c).Seconds(); math.Abs(r-1.83) > 0.03 {
		t.Errorf("recall 0.7 stretches the interval by %.3f, want 1.83", r)
	}
	if got := Interval(Costs{Checkpoint: time.Millisecond, Latency: time.Minute}, Predictor{}, mtbf); got != time.Minute {
		t.Errorf("the interval is %v, shorter than the latency", got)
	}
}

// A prediction-aware interval is at least as good as its neighbours by the
// formula for the waste that it minimises.
func TestIntervalIsALeast(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mtbf := time.Duration(rapid.Int64Range(int64(time.Hour), int64(1000*time.Hour)).Draw(t, "mtbf"))
		c := Costs{Checkpoint: time.Duration(rapid.Int64Range(int64(time.Millisecond), int64(mtbf/200)).Draw(t, "c"))}
		p := Predictor{Recall: rapid.Float64Range(0, 0.95).Draw(t, "recall"), Precision: 0.5}
		at := Interval(c, p, mtbf)
		w := Waste(c, p, mtbf, at+c.Checkpoint)
		for _, f := range []float64{0.5, 0.8, 1.25, 2} {
			if o := Waste(c, p, mtbf, scale(at, f)+c.Checkpoint); o < w*0.995 {
				t.Fatalf("%v wastes %.6f, %v wastes %.6f", at, w, scale(at, f), o)
			}
		}
	})
}

func TestTwoLevel(t *testing.T) {
	cheap, dear := Level{Cost: 2 * time.Second, MTBF: 2 * time.Hour}, Level{Cost: 60 * time.Second, MTBF: 100 * time.Hour}
	p := TwoLevel(cheap, dear)
	overhead := func(n int, work float64) float64 {
		return (float64(n)*2+60)/work + work*(1/(2*float64(n)*7200)+1.0/(2*360000))
	}
	best := overhead(p.Cheap, p.Work.Seconds())
	for n := 1; n < 500; n++ {
		for _, f := range []float64{0.9, 1, 1.1} {
			w := math.Sqrt((float64(n)*2+60)/(1/(2*float64(n)*7200)+1.0/(2*360000))) * f
			if overhead(n, w) < best*(1-1e-9) {
				t.Fatalf("%+v has overhead %.5f, %d cheap ones in %.0f s have %.5f", p, best, n, w, overhead(n, w))
			}
		}
	}
	if bound := math.Sqrt(2*2.0/7200) + math.Sqrt(2*60.0/360000); best < bound*0.999 {
		t.Errorf("overhead %.5f is below the bound %.5f", best, bound)
	}
}

func TestEstimateMTBF(t *testing.T) {
	prior := 100 * time.Hour
	near(t, "an estimate from nothing", EstimateMTBF(prior, 0, 0, 2), prior.Seconds(), 1)
	near(t, "an estimate from much", EstimateMTBF(prior, 10000*time.Hour, 1000, 2), 10*3600, 800)
}

func alarm() Alarm {
	return Alarm{
		Confidence: 0.5, Lead: time.Hour, SinceCommit: 10 * time.Minute, Target: true,
		Memory: 1 << 30, Bandwidth: 1e9, DirtyRate: 1e8, MigrationLoss: time.Second,
	}
}

var costs = Costs{Checkpoint: 2 * time.Second, Latency: 5 * time.Second, Restart: 3 * time.Second, Downtime: 4 * time.Second}

func TestDecide(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Alarm)
		want   Action
		why    Obstacle // of the option before the one taken
	}{
		{"cheap migration", func(*Alarm) {}, Migrate, ""},
		{"nowhere to go", func(a *Alarm) { a.Target = false }, Checkpoint, NoTarget},
		{"too much written", func(a *Alarm) { a.DirtyRate = 2e9 }, Checkpoint, NeverEnds},
		{"no time to move", func(a *Alarm) { a.Memory = 1 << 50 }, Checkpoint, TooLate},
		{"no time at all", func(a *Alarm) { a.Lead = 0 }, Ignore, TooLate},
		{"hardly believed", func(a *Alarm) { a.Confidence = 1e-4 }, Ignore, ""},
		{"just saved", func(a *Alarm) { a.SinceCommit, a.Target = time.Second, false }, Ignore, NoTarget},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := alarm()
			c.change(&a)
			d := Decide(a, costs)
			if d.Action != c.want {
				t.Errorf("%s, want %s: %v", d.Action, c.want, d.Options)
			}
			if got := d.Options[2].Obstacle; got != c.why {
				t.Errorf("migration: obstacle %q, want %q", got, c.why)
			}
		})
	}
}

// The chosen action is possible and no possible one is cheaper.
func TestDecideTakesTheCheapest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		second := rapid.Int64Range(0, int64(time.Hour))
		draw := func(name string) time.Duration { return time.Duration(second.Draw(t, name)) }
		a := Alarm{
			Confidence: rapid.Float64Range(0, 1).Draw(t, "p"), Lead: draw("lead"), SinceCommit: draw("t"),
			Target: rapid.Bool().Draw(t, "target"), Memory: rapid.Int64Range(0, 1<<50).Draw(t, "memory"),
			Bandwidth: rapid.Float64Range(0, 1e10).Draw(t, "b"), DirtyRate: rapid.Float64Range(0, 1e10).Draw(t, "d"),
			MigrationLoss: draw("m"),
		}
		c := Costs{Checkpoint: draw("c"), Latency: draw("l"), Restart: draw("r"), Downtime: draw("down")}
		d := Decide(a, c)
		var chosen Option
		for _, o := range d.Options {
			if o.Action == d.Action {
				chosen = o
			}
		}
		if chosen.Obstacle != "" {
			t.Fatalf("chose %v", chosen)
		}
		for _, o := range d.Options {
			if o.Obstacle == "" && o.Cost < chosen.Cost {
				t.Fatalf("chose %v although %v is cheaper", chosen, o)
			}
		}
	})
}

func TestGuard(t *testing.T) {
	g := Guard{PerNode: 1, Cluster: 3, MinHealthy: 2, Cooldown: time.Minute}
	free := Situation{Healthy: 2, SinceMove: -1}
	for _, c := range []struct {
		name    string
		change  func(*Situation)
		urgent  bool
		allowed bool
	}{
		{"quiet", func(*Situation) {}, false, true},
		{"source busy", func(s *Situation) { s.AtSource = 1 }, true, false},
		{"target busy", func(s *Situation) { s.AtTarget = 1 }, true, false},
		{"cluster busy", func(s *Situation) { s.InCluster = 3 }, true, false},
		{"few healthy", func(s *Situation) { s.Healthy = 1 }, true, false},
		{"just moved", func(s *Situation) { s.SinceMove = time.Second }, false, false},
		{"just moved, urgent", func(s *Situation) { s.SinceMove = time.Second }, true, true},
		{"moved long ago", func(s *Situation) { s.SinceMove = time.Hour }, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := free
			c.change(&s)
			if why := g.Allow(s, c.urgent); (why == "") != c.allowed {
				t.Errorf("answer %q", why)
			}
		})
	}
	if why := (Guard{}).Allow(Situation{AtSource: 100, InCluster: 100}, false); why != "" {
		t.Errorf("a guard without limits says %q", why)
	}
}

func TestCustom(t *testing.T) {
	c, err := Compile(`target && confidence > 0.3 && "migrate" in possible ? "migrate" : best`)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := c.Decide(alarm(), costs); err != nil || d.Action != Migrate {
		t.Errorf("%s, %v", d.Action, err)
	}
	a := alarm()
	a.Lead = 0
	if d, err := c.Decide(a, costs); err != nil || d.Action != Ignore {
		t.Errorf("%s, %v", d.Action, err)
	}
	for _, source := range []string{"1 + 1", "unknown", `"`, "", string(make([]byte, maxCustom+1))} {
		if _, err := Compile(source); err == nil {
			t.Errorf("%.20q is accepted", source)
		}
	}
	for _, source := range []string{`"explode"`, `"migrate"`, `string(1/0)`, `join(map(1..1000000, "x"))`} {
		c, err := Compile(source)
		if err != nil {
			continue
		}
		if d, err := c.Decide(a, costs); err == nil {
			t.Errorf("%s gave %s", source, d.Action)
		} else if d.Action != Ignore {
			t.Errorf("%s: the decision that stands is %s", source, d.Action)
		}
	}
}
