package health

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRecordAndReplay(t *testing.T) {
	rules := parse(t, one(`, when: 'delta("1h") > 5', until: 'delta("10m") < 1', for: 1m`))
	live := NewEngine(rules)
	var file bytes.Buffer
	rec := NewRecorder(&file)
	var want, got []Change
	for i := range 100 {
		batch := []Reading{reading(float64(i*60+1), "a", float64(min(i, 20))), reading(float64(i*60+1), "b", 0)}
		require.NoError(t, rec.Write(batch))
		if c, changed := live.Observe(batch); changed {
			want = append(want, c)
		}
	}
	engine, n, err := Replay(&file, rules, func(c Change) { got = append(got, c) })
	require.NoError(t, err)
	assert.Equal(t, 200, n)
	assert.Len(t, got, 3)
	assert.Equal(t, want, got, "a replay decides otherwise than the live engine did")
	assert.Equal(t, live.Verdict(), engine.Verdict())
}

// Lines written by hand have a wall clock only; one that was set back does not
// turn time around.
func TestReplayWithoutUp(t *testing.T) {
	text := `# a comment, then an empty line

{"probe": "p", "metric": "m", "value": 0, "at": "2026-01-01T00:00:00Z"}
{"probe": "p", "metric": "m", "value": 11, "at": "2026-01-01T00:10:00Z"}
{"probe": "p", "metric": "m", "value": 11, "at": "2025-12-31T00:10:00Z"}
{"probe": "p", "metric": "m", "value": 0, "at": "2026-01-01T00:30:00Z"}`
	var log []string
	_, n, err := Replay(strings.NewReader(text), parse(t, one(", when: value > 10, hold: 15m")), func(c Change) {
		log = append(log, c.At.Format(time.TimeOnly)+" "+c.Verdict.State.String())
	})
	require.NoError(t, err)
	assert.Equal(t, 4, n)
	assert.Equal(t, []string{"00:00:00 healthy", "00:10:00 failing", "00:30:00 healthy"}, log)
}

func TestBadRecordings(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"no JSON":       {"\n\nhello\n", "line 3"},
		"unknown field": {`{"probe": "p", "metric": "m", "colour": 1}`, "colour"},
		"no metric":     {`{"probe": "p", "value": 1}`, "probe and a metric"},
		"a huge line":   {strings.Repeat("x", maxLine+1), "more than"},
		"negative time": {`{"probe": "p", "metric": "m", "up": -4}`, "up"},
	} {
		_, _, err := Replay(strings.NewReader(test.text), parse(t, one(", when: value > 10")), func(Change) {})
		require.ErrorIs(t, err, ErrRecording, name)
		assert.ErrorContains(t, err, test.want, name)
	}
}

func FuzzReplay(f *testing.F) {
	f.Add(`{"probe": "p", "metric": "m", "value": 11, "at": "2026-01-01T00:10:00Z"}`)
	f.Add(`{"probe": "edac", "metric": "corrected", "subject": "mc0/dimm0", "value": 1e300, "counter": true, "up": 1e300}`)
	f.Add("{\"probe\": \"smart\", \"metric\": \"available_spare\", \"value\": -1, \"up\": 5}\n{\"probe\": \"smart\", \"metric\": \"available_spare\", \"value\": 1, \"up\": 4}")
	rules, err := DefaultRules()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		engine, _, err := Replay(strings.NewReader(text), rules, func(Change) {})
		if err != nil {
			return
		}
		if v := engine.Verdict(); !(v.Confidence >= 0 && v.Confidence <= 1) || v.Lead < 0 {
			t.Fatalf("verdict %+v", v)
		}
		data, err := engine.Save("")
		if err != nil {
			t.Fatal(err)
		}
		if err := NewEngine(rules).Restore(data, ""); err != nil {
			t.Fatal(err)
		}
	})
}
