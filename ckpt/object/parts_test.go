package object

import (
	"errors"
	"sync"
	"testing"
	"time"
)

func TestRefCache(t *testing.T) {
	freed := map[string]int{}
	c := newRefCache[int](2, func(s string) { freed[s]++ })
	get := func(key int, value string) *cached[int, string] {
		t.Helper()
		e, err := c.acquire(key, func() (string, int64, error) { return value, 1, nil })
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	a, b := get(1, "a"), get(2, "b")
	if again := get(1, "not made"); again.value != "a" {
		t.Errorf("made again: %q", again.value)
	}
	c.release(a)
	x := get(3, "c") // more than the limit, but all are in use
	if len(freed) != 0 {
		t.Errorf("freed in use: %v", freed)
	}
	c.release(b)
	if freed["b"] != 1 {
		t.Errorf("not freed: %v", freed)
	}
	// Dropped while in use: freed by the last user, and made anew.
	c.drop(func(k int) bool { return k == 1 })
	if freed["a"] != 0 || get(1, "A").value != "A" {
		t.Error("dropped entry is used on")
	}
	c.release(a)
	if freed["a"] != 1 {
		t.Errorf("not freed by the last user: %v", freed)
	}
	c.release(x)
	c.drop(func(int) bool { return true })
	if freed["c"] != 1 {
		t.Errorf("idle entry not freed: %v", freed)
	}
	failure := errors.New("no")
	if _, err := c.acquire(9, func() (string, int64, error) { return "", 5, failure }); !errors.Is(err, failure) {
		t.Error(err)
	}
	if get(9, "yes").value != "yes" {
		t.Error("a failure is remembered")
	}
}

func TestRefCacheLoadsOnce(t *testing.T) {
	c := newRefCache[int](1, func(int) {})
	loads := 0
	begun, proceed := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	load := func() (int, int64, error) {
		loads++
		close(begun)
		<-proceed
		return 7, 1, nil
	}
	for range 4 {
		wg.Go(func() {
			e, err := c.acquire(1, load)
			if err != nil || e.value != 7 {
				t.Errorf("%v, %v", e, err)
				return
			}
			c.release(e)
		})
	}
	<-begun
	close(proceed)
	wg.Wait()
	if loads != 1 {
		t.Errorf("loaded %d times", loads)
	}
}

func TestPace(t *testing.T) {
	// settle feeds the same figures until the averages have followed.
	settle := func(p *pace, disk float64, speed, ratio [levels]float64) {
		for range 200 {
			p.wrote(1e6, time.Duration(1e6/disk*1e9))
			for l := levelFast; l < levels; l++ {
				p.encoded(l, 1e6, int(1e6*ratio[l]), time.Duration(1e6/speed[l]*1e9))
			}
		}
	}
	speed := [levels]float64{0, 300e6, 150e6, 50e6}
	ratio := [levels]float64{0, 0.5, 0.4, 0.35}
	for _, tc := range []struct {
		name  string
		disk  float64
		ratio [levels]float64
		fill  int64
		want  level
	}{
		{"slow disk", 20e6, ratio, 1, levelBetter},
		{"disk", 120e6, ratio, 1, levelDefault},
		{"fast disk", 280e6, ratio, 1, levelFast},
		{"very fast disk", 3e9, ratio, 1, levelRaw},
		{"very fast disk, idle", 3e9, ratio, 0, levelFast},
		{"queue half full", 20e6, ratio, 4, levelRaw},
		{"nothing to gain", 20e6, [levels]float64{0, 1, 1, 1}, 1, levelRaw},
	} {
		p := newPace()
		p.workers = 2
		settle(p, tc.disk, speed, tc.ratio)
		if got := p.choose(tc.fill); got != tc.want {
			t.Errorf("%s: level %d, want %d", tc.name, got, tc.want)
		}
		if tc.want != levelRaw || tc.fill >= 4 {
			continue
		}
		probed := false
		for range probeEvery {
			probed = probed || p.choose(tc.fill) != levelRaw
		}
		if !probed {
			t.Errorf("%s: no other level is tried any more", tc.name)
		}
	}
}
