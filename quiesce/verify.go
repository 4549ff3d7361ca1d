package quiesce

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// ErrImbalance says that frames may be in flight, or that the counts of the
// two ends cannot be compared.
var ErrImbalance = errors.New("quiesce: the drain is not proven")

// Member says on which node a guest runs.
type Member struct {
	Guest int
	Node  string
}

// VerifyDrain is Verify for members as the API has them.
func VerifyDrain(members []*vftv1.Member, reports map[string][]*vftv1.PairCount) (*vftv1.DrainProof, error) {
	all := make([]Member, 0, len(members))
	for _, m := range members {
		all = append(all, Member{Guest: int(m.GetGuest()), Node: m.GetNode()})
	}
	return Verify(all, reports)
}

type pairID struct{ source, destination uint32 }

func (p pairID) String() string { return fmt.Sprintf("%d→%d", p.source, p.destination) }

// Verify checks the counts that the nodes of all members reported of their
// held and drained network: for each ordered pair of guests sent = delivered
// + dropped, and both ends speak of the same link. It returns the sums, pairs
// without traffic left out. The error names the first pair that is wrong.
func Verify(members []Member, reports map[string][]*vftv1.PairCount) (*vftv1.DrainProof, error) {
	nodeOf := make(map[uint32]string, len(members))
	for _, m := range members {
		if _, twice := nodeOf[uint32(m.Guest)]; twice {
			return nil, fmt.Errorf("%w: guest %d is named twice", ErrImbalance, m.Guest)
		}
		nodeOf[uint32(m.Guest)] = m.Node
		if _, ok := reports[m.Node]; !ok {
			return nil, fmt.Errorf("%w: no report of node %s", ErrImbalance, m.Node)
		}
	}
	sources, destinations := map[pairID]*vftv1.PairCount{}, map[pairID]*vftv1.PairCount{}
	for node, report := range reports {
		for _, c := range report {
			if err := sortEnd(c, node, nodeOf, sources, destinations); err != nil {
				return nil, fmt.Errorf("%w: node %s: %w", ErrImbalance, node, err)
			}
		}
	}
	ids := make([]pairID, 0, len(sources))
	for id := range sources {
		ids = append(ids, id)
	}
	for id := range destinations {
		if sources[id] == nil {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b pairID) int {
		if a.source != b.source {
			return int(a.source) - int(b.source)
		}
		return int(a.destination) - int(b.destination)
	})
	proof := &vftv1.DrainProof{}
	for _, id := range ids {
		sum, err := balance(sources[id], destinations[id])
		if err != nil {
			return nil, fmt.Errorf("%w: pair %s (%s to %s): %w", ErrImbalance, id, nodeOf[id.source], nodeOf[id.destination], err)
		}
		proof.Pairs = append(proof.Pairs, sum)
	}
	return proof, nil
}

// sortEnd files one count of a node under the end of the pair that it is of.
// A pair within a node has only a source end.
func sortEnd(c *vftv1.PairCount, node string, nodeOf map[uint32]string, sources, destinations map[pairID]*vftv1.PairCount) error {
	id := pairID{c.GetSource(), c.GetDestination()}
	from, okFrom := nodeOf[id.source]
	to, okTo := nodeOf[id.destination]
	switch {
	case !okFrom || !okTo || id.source == id.destination:
		return fmt.Errorf("pair %s is not two guests of the job", id)
	case from != node && to != node:
		return fmt.Errorf("pair %s has no guest there", id)
	case (from == to) != (c.GetLink() == 0):
		return fmt.Errorf("pair %s from %s to %s cannot use link %d", id, from, to, c.GetLink())
	}
	if c.GetSent() == 0 && c.GetDelivered() == 0 && c.GetDropped() == 0 {
		return nil
	}
	end := destinations
	if from == node {
		end = sources
		if to != node && c.GetDelivered() != 0 {
			return fmt.Errorf("pair %s: %d delivered where it begins", id, c.GetDelivered())
		}
	} else if c.GetSent() != 0 {
		return fmt.Errorf("pair %s: %d sent where it ends", id, c.GetSent())
	}
	if end[id] != nil {
		return fmt.Errorf("pair %s is counted twice", id)
	}
	end[id] = c
	return nil
}

// balance adds the ends of a pair up; either may be missing.
func balance(source, destination *vftv1.PairCount) (*vftv1.PairCount, error) {
	one := source
	if one == nil {
		one = destination
	}
	sum := &vftv1.PairCount{
		Source: one.GetSource(), Destination: one.GetDestination(), Link: one.GetLink(),
		Sent: source.GetSent(), Delivered: source.GetDelivered() + destination.GetDelivered(),
	}
	if source != nil && destination != nil && source.GetLink() != destination.GetLink() {
		return nil, fmt.Errorf("counted on link %d where it begins and on link %d where it ends", source.GetLink(), destination.GetLink())
	}
	dropped, over := bits.Add64(source.GetDropped(), destination.GetDropped(), 0)
	arrived, over2 := bits.Add64(sum.GetDelivered(), dropped, 0)
	sum.Dropped = dropped
	if over != 0 || over2 != 0 || sum.GetSent() != arrived {
		return nil, fmt.Errorf("sent %d, delivered %d, dropped %d", sum.GetSent(), sum.GetDelivered(), dropped)
	}
	return sum, nil
}
