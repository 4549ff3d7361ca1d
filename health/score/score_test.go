package score

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

const window = 100

// raise notes that the rule r is the one that has an alarm on the node.
func (b *Book) raiseOnly(node string, now int64) {
	b.Show(node, now, []Alarm{{Rule: "r", Confidence: 0.5, Window: window}})
}

func TestEpisodes(t *testing.T) {
	for name, test := range map[string]struct {
		story func(b *Book)
		want  Tally
	}{
		"a failure in time": {func(b *Book) {
			b.raiseOnly("n1", 0)
			b.Fail("n1", 100, []string{"r"})
		}, Tally{Episodes: 1, Hits: 1, Leads: []int64{100}, At: 100}},
		"a failure after the alarm cleared, still in time": {func(b *Book) {
			b.raiseOnly("n1", 10)
			b.Show("n1", 20, nil)
			b.Fail("n1", 50, []string{"r"})
		}, Tally{Episodes: 1, Hits: 1, Leads: []int64{40}, At: 50}},
		"no failure": {func(b *Book) {
			b.raiseOnly("n1", 0)
			b.Show("n1", 1, nil)
			b.Advance(101)
		}, Tally{Episodes: 1, False: 1, At: 101}},
		"not over yet": {func(b *Book) {
			b.raiseOnly("n1", 0)
			b.Advance(100)
		}, Tally{Episodes: 1}},
		"a failure too late, the alarm over": {func(b *Book) {
			b.raiseOnly("n1", 0)
			b.Show("n1", 1, nil)
			b.Fail("n1", 101, []string{"r"})
		}, Tally{Episodes: 1, False: 1, Missed: 1, At: 101}},
		"a failure too late, the alarm still raised": {func(b *Book) {
			b.raiseOnly("n1", 0)
			b.Fail("n1", 101, []string{"r"})
		}, Tally{Episodes: 1, False: 1, At: 101}},
		"an alarm that stays is counted once": {func(b *Book) {
			for now := int64(0); now < 1000; now += 10 {
				b.raiseOnly("n1", now)
			}
			b.Show("n1", 1000, nil)
			b.Advance(2000)
		}, Tally{Episodes: 1, False: 1, At: 110}},
		"flapping is one episode": {func(b *Book) {
			for i := range int64(5) {
				b.raiseOnly("n1", i*10)
				b.Show("n1", i*10+5, nil)
			}
			b.Advance(101)
		}, Tally{Episodes: 1, False: 1, At: 101}},
		"after an episode another": {func(b *Book) {
			b.raiseOnly("n1", 0)
			b.Show("n1", 1, nil)
			b.raiseOnly("n1", 110) // nobody had looked since 100
			b.Fail("n1", 120, []string{"r"})
		}, Tally{Episodes: 2, Hits: 1, False: 1, Leads: []int64{10}, At: 120}},
		"a node that comes back with its alarm is feared for again": {func(b *Book) {
			b.raiseOnly("n1", 0)
			b.Fail("n1", 10, []string{"r"})
			b.raiseOnly("n1", 20)
			b.Fail("n1", 50, []string{"r"})
		}, Tally{Episodes: 2, Hits: 2, Leads: []int64{10, 30}, At: 50}},
		"missed":        {func(b *Book) { b.Fail("n1", 5, []string{"r", "r"}) }, Tally{Missed: 1, At: 5}},
		"did not watch": {func(b *Book) { b.Fail("n1", 5, []string{"other"}) }, Tally{}},
		"another node": {func(b *Book) {
			b.raiseOnly("n2", 0)
			b.Fail("n1", 5, []string{"r"})
		}, Tally{Episodes: 1, Missed: 1, At: 5}},
		"taken away on purpose": {func(b *Book) {
			b.raiseOnly("n1", 0)
			b.Withdraw("n1")
			b.Advance(1000)
		}, Tally{Episodes: 1}},
		"two subjects": {func(b *Book) {
			a := Alarm{Rule: "r", Confidence: 0.5, Window: window}
			b.Show("n1", 0, []Alarm{a, a})
			b.Fail("n1", 7, []string{"r"})
		}, Tally{Episodes: 1, Hits: 1, Leads: []int64{7}, At: 7}},
	} {
		t.Run(name, func(t *testing.T) {
			var b Book
			test.story(&b)
			if test.want.Episodes > 0 {
				test.want.Confidence = 0.5
			}
			assert.Equal(t, test.want, b.Tallies["r"])
			assert.False(t, b.Due(0))
		})
	}
}

func TestDue(t *testing.T) {
	var b Book
	b.raiseOnly("n1", 0)
	assert.False(t, b.Due(window))
	assert.True(t, b.Due(window+1))
	b.Advance(window + 1)
	assert.False(t, b.Due(window+1), "it is raised, and has been counted")
}

// Whatever nodes send, a book does not outgrow its bounds, and what is known of
// rules that are heard of is kept.
func TestBookIsBounded(t *testing.T) {
	var b Book
	b.raiseOnly("good", 1)
	b.Fail("good", 2, nil)
	many := make([]Alarm, 2*MaxOpen)
	for round := range int64(20) {
		var watching []string
		for i := range many {
			many[i] = Alarm{Rule: fmt.Sprint(round, "-", i), Confidence: 0.1, Window: 1 << 62}
			watching = append(watching, many[i].Rule)
		}
		b.Show("bad", 1<<61+round, many)
		b.Fail("worse", 1<<61+round, watching)
		b.raiseOnly("good", 1<<61+round)
		require.LessOrEqual(t, len(b.Tallies), MaxRules)
		require.LessOrEqual(t, len(b.Open["bad"]), MaxOpen)
	}
	for range 3 * MaxLeads {
		b.raiseOnly("good", 1<<61+30)
		b.Fail("good", 1<<61+31, nil)
	}
	assert.Len(t, b.Tallies["r"].Leads, MaxLeads)
	assert.GreaterOrEqual(t, b.Tallies["r"].Hits, int64(3*MaxLeads))
}

func TestLead(t *testing.T) {
	assert.Zero(t, Tally{}.Lead())
	assert.Equal(t, int64(5), Tally{Leads: []int64{9, 5, 1}}.Lead())
	assert.Equal(t, int64(5), Tally{Leads: []int64{9, 5, 1, 7}}.Lead())
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
	assert.InDelta(t, 0.4, Tally{False: 6}.Weight(0.5), 1e-12)
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
					book.Show(node, now, []Alarm{{Rule: rule, Confidence: 0.4, Window: 50}})
				case 1:
					book.Show(node, now, nil)
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
			require.False(t, event != 3 && a.Due(now), "what was shown or failed was judged first")
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
			require.LessOrEqual(t, tally.Hits+tally.False, tally.Episodes)
			p := tally.Precision(0.4)
			require.True(t, p > 0 && p < 1)
			require.Greater(t, Tally{Hits: tally.Hits + 1, False: tally.False}.Precision(0.4), p)
			require.Less(t, Tally{Hits: tally.Hits, False: tally.False + 1}.Precision(0.4), p)
		}
		require.LessOrEqual(t, sum, raises)
	})
}
