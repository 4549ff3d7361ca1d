package coordinator

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func aNode(id, domain string, cpus uint32, mem uint64) *vftv1.Node {
	return &vftv1.Node{Id: id, Address: id + ":1", FailureDomain: domain, Cpus: cpus, MemoryMib: mem, State: vftv1.NodeState_NODE_STATE_ALIVE, Images: []string{"img"}}
}

// verdict is a node's about itself, because of a DIMM.
func verdict(state vftv1.HealthState) *vftv1.Health {
	return &vftv1.Health{State: state, Confidence: 0.6, Lead: int64(time.Hour), Since: 1, Reasons: []*vftv1.HealthReason{{
		Rule: "memory-uncorrected", Subject: "mc0/dimm1", Level: state, Confidence: 0.6, Lead: int64(time.Hour), Window: int64(3 * time.Hour),
		Since: 1, Evidence: "DIMM mc0/dimm1: 1 uncorrected errors since boot",
	}}}
}

func TestPlace(t *testing.T) {
	four := []*vftv1.Node{aNode("a1", "A", 4, 8192), aNode("a2", "A", 4, 8192), aNode("b1", "B", 4, 8192), aNode("b2", "B", 4, 8192)}
	lost := aNode("a1", "A", 4, 8192)
	lost.State = vftv1.NodeState_NODE_STATE_LOST
	bare := aNode("b1", "B", 4, 8192)
	bare.Images = nil
	suspect, failed := vftv1.HealthState_HEALTH_STATE_SUSPECT, vftv1.HealthState_HEALTH_STATE_FAILING
	ill := func(id string, state vftv1.HealthState) *vftv1.Node {
		n := aNode(id, "A", 4, 8192)
		n.Health = verdict(state)
		return n
	}
	guests := func(nodes ...string) []*vftv1.Guest {
		var out []*vftv1.Guest
		for i, n := range nodes {
			out = append(out, &vftv1.Guest{Index: uint32(i), Node: n})
		}
		return out
	}
	for _, tc := range []struct {
		name   string
		in     placing
		guests int
		want   []string
		over   bool
		err    string
	}{
		{name: "across failure domains first", in: placing{nodes: four}, guests: 2, want: []string{"a1", "b1"}},
		{name: "one per node before two", in: placing{nodes: four}, guests: 4, want: []string{"a1", "b1", "a2", "b2"}},
		{name: "then by free capacity", in: placing{nodes: four, used: map[string]demand{"a1": {cpus: 2}}}, guests: 5, want: []string{"a2", "b1", "b2", "a1", "a2"}},
		{name: "no more than the processors", in: placing{nodes: four[:1]}, guests: 3, err: "allow oversubscribing"},
		{name: "memory is strict", in: placing{nodes: []*vftv1.Node{aNode("a1", "A", 64, 2047)}, restart: true}, guests: 2, err: "1023 of 2047 MiB free"},
		{name: "other jobs count", in: placing{nodes: four[:1], used: map[string]demand{"a1": {cpus: 3}}}, guests: 1, err: "1 of 4 processors free"},
		{name: "lost nodes do not", in: placing{nodes: []*vftv1.Node{lost}}, guests: 1, err: "a1: lost"},
		{name: "the image must be there", in: placing{nodes: []*vftv1.Node{bare}}, guests: 1, err: "does not hold image img"},
		{name: "no nodes", in: placing{}, guests: 1, err: "start a sidecar"},
		{name: "restart keeps survivors", in: placing{nodes: append(slices.Clone(four[1:]), lost), restart: true, present: guests("b2", "a1", "a2")}, guests: 3, want: []string{"b2", "b1", "a2"}},
		{name: "restart may crowd", in: placing{nodes: four[:1], restart: true, present: guests("a1", "x", "x")}, guests: 3, want: []string{"a1", "a1", "a1"}, over: true},
		{name: "restart prefers a holder", in: placing{
			nodes: four, restart: true, present: guests("a1", "x"), holders: map[uint32][]string{1: {"x", "b2"}},
		}, guests: 2, want: []string{"a1", "b2"}},
		{name: "a node that failed comes last", in: placing{nodes: four[:2], avoid: map[string]int{"a1": 1}, restart: true, present: guests("a1")}, guests: 1, want: []string{"a2"}},
		{name: "but is better than none", in: placing{nodes: four[:1], avoid: map[string]int{"a1": 1}, restart: true, present: guests("a1")}, guests: 1, want: []string{"a1"}},
		{name: "suspect nodes come last", in: placing{nodes: []*vftv1.Node{ill("a1", suspect), four[1], four[2]}}, guests: 2, want: []string{"a2", "b1"}},
		{name: "but are taken", in: placing{nodes: []*vftv1.Node{ill("a1", suspect), four[2]}}, guests: 3, want: []string{"b1", "b1", "a1"}},
		{name: "guests stay on suspect nodes", in: placing{nodes: []*vftv1.Node{ill("a1", suspect), four[2]}, restart: true, present: guests("a1")}, guests: 1, want: []string{"a1"}},
		{name: "failing nodes are not taken", in: placing{nodes: []*vftv1.Node{ill("a1", failed)}}, guests: 1, err: "a1: is failing: DIMM mc0/dimm1"},
		{name: "a restart leaves a failing node", in: placing{nodes: []*vftv1.Node{ill("a1", failed), four[2]}, restart: true, present: guests("a1")}, guests: 1, want: []string{"b1"}},
		{name: "unless the job would be lost", in: placing{nodes: []*vftv1.Node{ill("a1", failed)}, restart: true, present: guests("a1")}, guests: 1, want: []string{"a1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.in.spec = spec("j", tc.guests)
			p, err := place(tc.in)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("%v, %v; want an error with %q", p, err, tc.err)
				}
				return
			}
			if err != nil || !slices.Equal(p.nodes, tc.want) || p.oversubscribed != tc.over {
				t.Errorf("%v, %v; want %v", p, err, tc.want)
			}
		})
	}
	t.Run("pinned", func(t *testing.T) {
		s := spec("j", 2)
		s.Guests[1].Node = "b2"
		if p, err := place(placing{spec: s, nodes: four}); err != nil || p.nodes[1] != "b2" || p.nodes[0] != "a1" {
			t.Errorf("%v, %v", p, err)
		}
		s.Guests[1].Node = "zz"
		if _, err := place(placing{spec: s, nodes: four}); err == nil || !strings.Contains(err.Error(), "guest 1 cannot run on node zz as asked: no such node") {
			t.Errorf("%v", err)
		}
		if p, err := place(placing{spec: s, nodes: four, restart: true, present: guests("a1", "zz")}); err != nil || p.nodes[1] != "b1" {
			t.Errorf("restart without the pinned node: %v, %v", p, err)
		}
	})
	t.Run("oversubscribe", func(t *testing.T) {
		s := spec("j", 3)
		s.Oversubscribe = true
		if p, err := place(placing{spec: s, nodes: four[:1]}); err != nil || !p.oversubscribed {
			t.Errorf("%v, %v", p, err)
		}
	})
}

func TestPlaceRespectsCapacity(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var nodes []*vftv1.Node
		for i := range rapid.IntRange(1, 6).Draw(t, "nodes") {
			nodes = append(nodes, aNode(string(rune('a'+i)), rapid.SampledFrom([]string{"A", "B", ""}).Draw(t, "domain"),
				rapid.Uint32Range(1, 8).Draw(t, "cpus"), rapid.Uint64Range(512, 8192).Draw(t, "memory")))
		}
		s := spec("j", rapid.IntRange(1, 8).Draw(t, "guests"))
		s.Oversubscribe = rapid.Bool().Draw(t, "oversubscribe")
		p, err := place(placing{spec: s, nodes: nodes})
		if err != nil {
			return
		}
		for _, n := range nodes {
			mine := 0
			for _, id := range p.nodes {
				if id == n.GetId() {
					mine++
				}
			}
			if uint64(mine)*uint64(s.GetMemoryMib()) > n.GetMemoryMib() {
				t.Fatalf("%d guests on %v", mine, n)
			}
			crowded := uint32(mine)*s.GetCpus() > n.GetCpus()
			if crowded && (!s.GetOversubscribe() || !p.oversubscribed) {
				t.Fatalf("%d guests on %v, %v", mine, n, p)
			}
		}
	})
}

func TestCandidates(t *testing.T) {
	nodes := []*vftv1.Node{aNode("a1", "A", 4, 1), aNode("a2", "A", 4, 1), aNode("b1", "B", 4, 1), aNode("b2", "B", 4, 1)}
	parts := []held{{0, "a1", []string{"a1"}}, {1, "a2", []string{"a2"}}, {2, "b1", []string{"b1"}}, {3, "b2", []string{"b2"}}}
	domain := map[string]string{"a1": "A", "a2": "A", "b1": "B", "b2": "B"}
	for rotate := range 3 {
		got := candidates(nodes, parts, 2, nil, rotate)
		load := map[string]int{}
		for _, p := range parts {
			c := got[p.guest]
			if len(c) != 3 || domain[c[0].GetId()] == domain[p.home] || domain[c[2].GetId()] != domain[p.home] {
				t.Fatalf("guest on %s copied to %v", p.home, c)
			}
			load[c[0].GetId()]++
		}
		for n, l := range load {
			if l != 1 {
				t.Errorf("rotation %d: %s keeps %d parts", rotate, n, l)
			}
		}
	}
	if a, b := candidates(nodes, parts[:1], 2, nil, 0), candidates(nodes, parts[:1], 2, nil, 1); a[0][0] == b[0][0] {
		t.Errorf("rotation keeps %v", a)
	}
	if got := candidates(nodes, parts[:1], 2, map[string]int{"b1": 3}, 0); got[0][0].GetId() != "b2" {
		t.Errorf("with a busy node: %v", got)
	}
	moved := []held{{0, "b2", []string{"a1"}}}
	if got := candidates(nodes, moved, 2, map[string]int{"b2": 3}, 0); got[0][0].GetId() != "b2" {
		t.Errorf("of a guest that has moved: %v", got)
	}
	if got := candidates(nodes[:1], parts[:1], 2, nil, 0); len(got[0]) != 0 {
		t.Errorf("alone: %v", got)
	}
	nodes[2].State, nodes[3].State = vftv1.NodeState_NODE_STATE_LOST, vftv1.NodeState_NODE_STATE_LOST
	if got := candidates(nodes, parts[:1], 2, nil, 0); len(got[0]) != 1 || got[0][0].GetId() != "a2" {
		t.Errorf("without the other domain: %v", got)
	}
}
