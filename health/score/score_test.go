package score

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestEpisodes(t *testing.T) {
	const window = 100
	for name, test := range map[string]struct {
		story func(b *Book)
		want  Tally
	}{
		"a failure in time": {func(b *Book) {
			b.Raise("n1", "r", 0, window)
			b.Fail("n1", 100, []string{"r"})
		}, Tally{Hits: 1}},
		"a failure after the alarm cleared, still in time": {func(b *Book) {
			b.Raise("n1", "r", 0, window)
			b.Clear("n1", "r")
			b.Fail("n1", 50, []string{"r"})
		}, Tally{Hits: 1}},
		"no failure": {func(b *Book) {
			b.Raise("n1", "r", 0, window)
			b.Clear("n1", "r")
			b.Advance(101)
		}, Tally{False: 1}},
		"a failure too late, the alarm over": {func(b *Book) {
			b.Raise("n1", "r", 0, window)
			b.Clear("n1", "r")
			b.Fail("n1", 101, []string{"r"})
		}, Tally{False: 1, Missed: 1}},
		"a failure too late, the alarm still raised": {func(b *Book) {
			b.Raise("n1", "r", 0, window)
			b.Fail("n1", 101, []string{"r"})
		}, Tally{False: 1}},
		"an alarm that stays is counted once": {func(b *Book) {
			b.Raise("n1", "r", 0, window)
			for now := int64(0); now < 1000; now += 10 {
				b.Advance(now)
			}
			b.Clear("n1", "r")
			b.Advance(2000)
		}, Tally{False: 1}},
		"flapping is one episode": {func(b *Book) {
			for i := range int64(5) {
				b.Raise("n1", "r", i*10, window)
				b.Clear("n1", "r")
			}
			b.Advance(101)
		}, Tally{False: 1}},
		"after an episode another": {func(b *Book) {
			b.Raise("n1", "r", 0, window)
			b.Clear("n1", "r")
			b.Advance(101)
			b.Raise("n1", "r", 110, window)
			b.Fail("n1", 120, []string{"r"})
		}, Tally{Hits: 1, False: 1}},
		"missed":                      {func(b *Book) { b.Fail("n1", 5, []string{"r"}) }, Tally{Missed: 1}},
		"did not watch":               {func(b *Book) { b.Fail("n1", 5, []string{"other"}) }, Tally{}},
		"another node":                {func(b *Book) { b.Raise("n2", "r", 0, window); b.Fail("n1", 5, []string{"r"}) }, Tally{Missed: 1}},
		"taken away on purpose":       {func(b *Book) { b.Raise("n1", "r", 0, window); b.Withdraw("n1"); b.Advance(1000) }, Tally{}},
		"cleared without being there": {func(b *Book) { b.Clear("n1", "r"); b.Advance(1000) }, Tally{}},
	} {
		t.Run(name, func(t *testing.T) {
			var b Book
			test.story(&b)
			assert.Equal(t, test.want, b.Tallies["r"])
		})
	}
}

func TestWeight(t *testing.T) {
	assert.InDelta(t, 1, Tally{}.Weight(0.3), 1e-12)
	assert.InDelta(t, 0.3, Tally{}.Precision(0.3), 1e-12)
	assert.InDelta(t, (4*0.5+1)/(4+1), Tally{Hits: 1}.Precision(0.5), 1e-12)
	assert.InDelta(t, (4*0.5)/(4+10), Tally{False: 10}.Precision(0.5), 1e-12)
	assert.InDelta(t, 0.5, Tally{Hits: 500, False: 500}.Precision(0.01), 0.01, "facts outweigh the guess")
	r, ok := Tally{Hits: 3, Missed: 1}.Recall()
	assert.True(t, ok)
	assert.InDelta(t, 0.75, r, 1e-12)
	_, ok = Tally{False: 3}.Recall()
	assert.False(t, ok)
	b := Book{Tallies: map[string]Tally{"wolf": {False: 6}}}
	assert.Equal(t, map[string]float64{"wolf": 0.4, "new": 1}, b.Weights(map[string]float64{"wolf": 0.5, "new": 0.5}))
}

// The book is state that is replicated: it survives JSON, and the same events
// give the same bytes. Every episode is counted at most once, and a rule's
// precision stays between 0 and 1 and goes the right way.
func TestBookProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var a, b Book
		var now int64
		raises := int64(0)
		for range rapid.IntRange(0, 60).Draw(t, "events") {
			now += rapid.Int64Range(0, 40).Draw(t, "step")
			node := rapid.SampledFrom([]string{"n1", "n2"}).Draw(t, "node")
			rule := rapid.SampledFrom([]string{"r", "s"}).Draw(t, "rule")
			event := rapid.IntRange(0, 4).Draw(t, "event")
			for _, book := range []*Book{&a, &b} {
				switch event {
				case 0:
					book.Raise(node, rule, now, 50)
				case 1:
					book.Clear(node, rule)
				case 2:
					book.Fail(node, now, []string{"r", "s"})
				case 3:
					book.Withdraw(node)
				case 4:
					book.Advance(now)
				}
			}
			if event == 0 {
				raises++
			}
			data, err := json.Marshal(b)
			require.NoError(t, err)
			b = Book{}
			require.NoError(t, json.Unmarshal(data, &b))
			other, err := json.Marshal(a)
			require.NoError(t, err)
			require.JSONEq(t, string(other), string(data))
		}
		sum := int64(0)
		for _, tally := range a.Tallies {
			sum += tally.Hits + tally.False
			p := tally.Precision(0.4)
			require.True(t, p > 0 && p < 1)
			require.Greater(t, Tally{tally.Hits + 1, tally.False, 0}.Precision(0.4), p)
			require.Less(t, Tally{tally.Hits, tally.False + 1, 0}.Precision(0.4), p)
		}
		require.LessOrEqual(t, sum, raises)
	})
}
