package quiesce

import (
	"math"
	"testing"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func count(source, destination uint32, sent, delivered, dropped, link uint64) *vftv1.PairCount {
	return &vftv1.PairCount{Source: source, Destination: destination, Sent: sent, Delivered: delivered, Dropped: dropped, Link: link}
}

func TestVerify(t *testing.T) {
	members := []Member{{0, "a"}, {1, "a"}, {2, "b"}}
	type reports = map[string][]*vftv1.PairCount
	for name, test := range map[string]struct {
		reports reports
		pairs   int
		err     string
	}{
		"silence":                    {reports{"a": nil, "b": nil}, 0, ""},
		"local":                      {reports{"a": {count(0, 1, 5, 4, 1, 0)}, "b": nil}, 1, ""},
		"remote":                     {reports{"a": {count(0, 2, 5, 0, 0, 7)}, "b": {count(0, 2, 0, 5, 0, 7)}}, 1, ""},
		"dropped at both ends":       {reports{"a": {count(0, 2, 5, 0, 1, 7)}, "b": {count(0, 2, 0, 2, 2, 7)}}, 1, ""},
		"all dropped at the source":  {reports{"a": {count(0, 2, 5, 0, 5, 7)}, "b": nil}, 1, ""},
		"zero count is no count":     {reports{"a": {count(0, 2, 0, 0, 0, 7)}, "b": {count(0, 2, 0, 0, 0, 8)}}, 0, ""},
		"both ways on two links":     {reports{"a": {count(0, 2, 1, 0, 0, 7), count(2, 0, 0, 2, 0, 8)}, "b": {count(0, 2, 0, 1, 0, 7), count(2, 0, 2, 0, 0, 8)}}, 2, ""},
		"local in flight":            {reports{"a": {count(0, 1, 5, 4, 0, 0)}, "b": nil}, 0, "pair 0→1 (a to a): sent 5, delivered 4, dropped 0"},
		"remote in flight":           {reports{"a": {count(0, 2, 5, 0, 0, 7)}, "b": {count(0, 2, 0, 4, 0, 7)}}, 0, "pair 0→2 (a to b): sent 5, delivered 4, dropped 0"},
		"more came than was sent":    {reports{"a": {count(0, 2, 5, 0, 0, 7)}, "b": {count(0, 2, 0, 6, 0, 7)}}, 0, "sent 5, delivered 6"},
		"absent where it ends":       {reports{"a": {count(0, 2, 5, 0, 0, 7)}, "b": nil}, 0, "sent 5, delivered 0"},
		"absent where it begins":     {reports{"a": nil, "b": {count(0, 2, 0, 5, 0, 7)}}, 0, "sent 0, delivered 5"},
		"two links":                  {reports{"a": {count(0, 2, 5, 0, 0, 7)}, "b": {count(0, 2, 0, 5, 0, 8)}}, 0, "link 7 where it begins and on link 8"},
		"overflow":                   {reports{"a": {count(0, 2, 4, 0, 5, 7)}, "b": {count(0, 2, 0, 0, math.MaxUint64, 7)}}, 0, "pair 0→2"},
		"no report":                  {reports{"a": nil}, 0, "no report of node b"},
		"counted twice":              {reports{"a": {count(0, 1, 1, 1, 0, 0), count(0, 1, 1, 1, 0, 0)}, "b": nil}, 0, "counted twice"},
		"stranger":                   {reports{"a": {count(0, 3, 1, 1, 0, 0)}, "b": nil}, 0, "not two guests of the job"},
		"to itself":                  {reports{"a": {count(0, 0, 1, 1, 0, 0)}, "b": nil}, 0, "not two guests of the job"},
		"somebody else's pair":       {reports{"a": nil, "b": {count(0, 1, 1, 1, 0, 0)}}, 0, "has no guest there"},
		"local pair on a link":       {reports{"a": {count(0, 1, 1, 1, 0, 7)}, "b": nil}, 0, "cannot use link 7"},
		"remote pair without a link": {reports{"a": {count(0, 2, 1, 0, 0, 0)}, "b": {count(0, 2, 0, 1, 0, 0)}}, 0, "cannot use link 0"},
		"delivered at the source":    {reports{"a": {count(0, 2, 1, 1, 0, 7)}, "b": nil}, 0, "1 delivered where it begins"},
		"sent at the destination":    {reports{"a": nil, "b": {count(0, 2, 1, 1, 0, 7)}}, 0, "1 sent where it ends"},
	} {
		t.Run(name, func(t *testing.T) {
			proof, err := Verify(members, test.reports)
			if test.err != "" {
				require.ErrorIs(t, err, ErrImbalance)
				assert.ErrorContains(t, err, test.err)
				return
			}
			require.NoError(t, err)
			assert.Len(t, proof.GetPairs(), test.pairs)
			for _, c := range proof.GetPairs() {
				assert.Equal(t, c.GetSent(), c.GetDelivered()+c.GetDropped())
			}
		})
	}
	_, err := VerifyDrain([]*vftv1.Member{{Guest: 0, Node: "a"}, {Guest: 0, Node: "a"}}, reports{"a": nil})
	assert.ErrorContains(t, err, "named twice")
}

// FuzzVerify gives Verify reports of nodes that say anything: what it accepts
// balances, pair by pair.
func FuzzVerify(f *testing.F) {
	f.Add([]byte{0, 0, 1, 3, 3, 0, 0})
	f.Add([]byte{0, 0, 2, 3, 0, 1, 5, 1, 0, 2, 0, 2, 0, 5})
	f.Add([]byte{0, 0, 2, 3, 0, 0, 5, 1, 0, 2, 0, 2, 0, 6})
	members := []Member{{0, "a"}, {1, "a"}, {2, "b"}}
	f.Fuzz(func(t *testing.T, data []byte) {
		reports := map[string][]*vftv1.PairCount{"a": nil, "b": nil}
		for ; len(data) >= 7; data = data[7:] {
			node := []string{"a", "b", "c"}[data[0]%3]
			big := uint64(0)
			if data[0] > 127 {
				big = math.MaxUint64 - 128 // sums that overflow
			}
			reports[node] = append(reports[node], count(uint32(data[1]), uint32(data[2]), big+uint64(data[3]), big+uint64(data[4]), uint64(data[5]), uint64(data[6])))
		}
		proof, err := Verify(members, reports)
		if err != nil {
			return
		}
		for _, p := range proof.GetPairs() {
			if p.GetSent() != p.GetDelivered()+p.GetDropped() || p.GetDelivered() > p.GetSent() || p.GetSource() > 2 || p.GetDestination() > 2 {
				t.Errorf("accepted: %v of %v", p, reports)
			}
		}
	})
}
