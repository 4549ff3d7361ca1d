package wrapper

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func machine(cpus int) Resources {
	return Resources{Embedded: true, Hostname: "here.example.org", Nodes: []Node{{Name: "here", CPUs: cpus}}}
}

func cluster(cpus ...int) Resources {
	r := Resources{Hostname: "login"}
	for i, n := range cpus {
		r.Nodes = append(r.Nodes, Node{Name: "node" + string(rune('1'+i)), Address: "10.0.0." + string(rune('1'+i)) + ":7700", CPUs: n})
	}
	return r
}

// layout writes a plan as node:slots of each guest.
func layout(p *Plan) string {
	var words []string
	for _, g := range p.Guests {
		words = append(words, g.Node+":"+string(rune('0'+g.Slots)))
	}
	return strings.Join(words, " ")
}

func TestPlan(t *testing.T) {
	tests := []struct {
		line   string
		on     Resources
		layout string
		ranks  int
		cpus   int
	}{
		{"-np 1 ./ompi", machine(2), ":1", 1, 2},
		{"-np 2 ./ompi", machine(2), ":2", 2, 2},
		{"-np 3 ./ompi", machine(2), ":2 :1", 3, 2},
		{"-np 4 ./ompi", machine(2), ":2 :2", 4, 2},
		{"-np 4 ./ompi", machine(8), ":4", 4, 8},
		{"-np 4 --vft-nodes 2 ./ompi", machine(8), ":2 :2", 4, 8},
		{"-np 4 --vft-nodes 4 --vft-cpus 1 ./ompi", machine(8), ":1 :1 :1 :1", 4, 1},
		{"-np 5 --oversubscribe ./ompi", machine(2), ":3 :2", 5, 2},
		{"-n 5 ./mpich", machine(2), ":3 :2", 5, 2},
		{"./ompi", machine(2), ":2", 2, 2},
		{"./mpich", machine(2), ":1", 1, 2},
		{"-np 4 -npernode 1 ./ompi", machine(2), ":1 :1 :1 :1", 4, 2},
		{"-ppn 2 -n 4 ./mpich", machine(2), ":2 :2", 4, 2},
		{"--host localhost:4 -np 4 ./ompi", machine(2), ":4", 4, 2},
		{"--host localhost:4 -np 4 --vft-nodes 2 ./ompi", machine(2), ":2 :2", 4, 2},
		{"--host here,here.example.org,127.0.0.1 ./ompi", machine(2), ":3", 3, 2},
		{"--host localhost:* ./ompi", machine(2), ":2", 2, 2},
		{"-np 1 ./ompi : -np 2 ./ompi2", machine(2), ":2 :1", 3, 2},
		{"-np 2 -nolocal ./ompi", machine(2), ":1 :2", 2, 2},
		{"-np 4 ./ompi", cluster(4, 4), ":2 :2", 4, 4},
		{"-np 1 ./ompi", cluster(4, 4), ":1", 1, 4},
		{"-np 5 ./ompi", cluster(4, 2, 4), ":2 :2 :1", 5, 2},
		{"./ompi", cluster(2, 2), ":2 :2", 4, 2},
		{"-npernode 2 ./ompi", cluster(2, 2), ":2 :2", 4, 2},
		{"-np 2 -npernode 2 ./ompi", cluster(2, 2), ":2", 2, 2},
		{"-np 2 --vft-nodes 1 ./ompi", cluster(2, 2), ":2", 2, 2},
		{"--host node1:2,node2:2 -np 4 ./ompi", cluster(4, 4), "node1:2 node2:2", 4, 4},
		{"--host node1:2,node2:2 -np 1 ./ompi", cluster(4, 4), "node1:2", 1, 4},
		{"--host 10.0.0.2:2 ./ompi", cluster(4, 4), "node2:2", 2, 4},
		{"--hostfile hosts.ompi -np 3 ./ompi", cluster(4, 4), "node1:2 node2:2", 3, 4},
		{"-f hosts.mpich ./mpich", cluster(4, 4), "node1:2 node2:2", 4, 4},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			c, err := parserIn(t).Parse(strings.Fields(tt.line))
			if err != nil {
				t.Fatal(err)
			}
			p, err := c.Plan(tt.on)
			if err != nil {
				t.Fatal(err)
			}
			if layout(p) != tt.layout || p.Ranks != tt.ranks || p.CPUs != tt.cpus {
				t.Errorf("guests %q, %d ranks, %d cpus; want %q, %d, %d", layout(p), p.Ranks, p.CPUs, tt.layout, tt.ranks, tt.cpus)
			}
		})
	}
}

func TestPlanErrors(t *testing.T) {
	tests := []struct {
		line string
		on   Resources
		code int
		says string
	}{
		{"-np 5 ./ompi", machine(2), ExitSlots, "not enough slots: 5 ranks asked for, 4 available"},
		{"-np 4 --vft-cpus 1 ./ompi", machine(8), ExitSlots, "--oversubscribe"},
		{"-np 2 --host localhost ./ompi", machine(2), ExitSlots, "on the hosts named"},
		{"-npernode 3 ./ompi", machine(2), ExitSlots, "on each guest"},
		{"-np 9 --oversubscribe --hostfile hosts.ompi ./ompi", cluster(2, 2), 0, ""},
		{"--host elsewhere ./ompi", machine(2), ExitHost, "--vft-cluster"},
		{"--host node9 ./ompi", cluster(2, 2), ExitHost, "it has node1, node2"},
		{"--host localhost ./ompi", cluster(2, 2), ExitHost, "not a live node"},
		{"-np 3 -npernode 1 ./ompi", cluster(2, 2), ExitSlots, "needs 3 guests and the cluster has 2 nodes"},
		{"-np 4 --host node1:2,node2:2 --vft-nodes 1 ./ompi", cluster(2, 2), ExitUsage, "one guest per host"},
		{"-np 1 ./ompi", Resources{}, ExitUnavailable, "no node that is alive"},
		{"-np 1 --vft-levels partner ./ompi", machine(2), ExitUsage, "only this machine"},
		{"-np 1 --vft-levels rs:2+1 ./ompi", cluster(2, 2), ExitSlots, "needs 3 nodes and the cluster has 2"},
		{"-np 1 --vft-commit s3:bucket ./ompi", cluster(2, 2), ExitUsage, "they are at local,partner"},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			c, err := parserIn(t).Parse(strings.Fields(tt.line))
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Plan(tt.on)
			if ExitCode(err) != tt.code || err != nil && (!strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "\n")) {
				t.Errorf("exit code %d, %v; want %d with %q", ExitCode(err), err, tt.code, tt.says)
			}
		})
	}
}

func TestPlanLevels(t *testing.T) {
	for _, tt := range []struct {
		line   string
		on     Resources
		levels string
		commit string
	}{
		{"./ompi", machine(2), "local", "local"},
		{"./ompi", cluster(2), "local", "local"},
		{"./ompi", cluster(2, 2), "local,partner", "partner"},
		{"--vft-levels local ./ompi", cluster(2, 2), "local", "local"},
		{"--vft-levels partner ./ompi", cluster(2), "local,partner", "partner"},
		{"--vft-levels s3:bucket,rs:1+1,partner ./ompi", cluster(2, 2), "local,s3:bucket,rs:1+1,partner", "rs:1+1"},
		{"--vft-levels dir:/d ./ompi", machine(2), "local,dir:/d", "local"},
		{"--vft-levels dir:/d --vft-commit dir:/d ./ompi", machine(2), "local,dir:/d", "dir:/d"},
		{"--vft-commit local ./ompi", cluster(2, 2), "local,partner", "local"},
	} {
		c, err := parserIn(t).Parse(strings.Fields(tt.line))
		if err != nil {
			t.Fatal(err)
		}
		p, err := c.Plan(tt.on)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(p.Levels, ","); got != tt.levels || p.Commit != tt.commit {
			t.Errorf("%s on %d nodes: levels %s, commit %s; want %s, %s", tt.line, len(tt.on.Nodes), got, p.Commit, tt.levels, tt.commit)
		}
	}
}

func TestArguments(t *testing.T) {
	tests := []struct {
		line string
		on   Resources
		env  []string
		want string
	}{
		{"--host node1:2 -np 2 ./ompi a", cluster(2, 2), nil, "-np 2 ./ompi a"},
		{"-np 1 --host node1 ./ompi : --host node2:2 -np 2 ./ompi2", cluster(2, 2), nil, "-np 1 ./ompi : --host guest1:2 -np 2 ./ompi2"},
		{"-np 1 ./ompi : -np 1 -- ./ompi2", machine(2), []string{"L=/a"}, "-np 1 -x L=/a ./ompi : -np 1 -x L=/a -- ./ompi2"},
		{"-np 1 -x L=/b ./ompi", machine(2), []string{"L=/a"}, "-np 1 -x L=/b -x L=/a:/b ./ompi"},
		{"-genv L /b -n 1 ./mpich", machine(2), []string{"L=/a"}, "-genv L /b -n 1 -env L /a:/b ./mpich"},
		{"-np 1 ./ompi", machine(2), []string{"FOO=/a"}, "-np 1 -x FOO=/a:1 ./ompi"},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			c, err := parserIn(t).Parse(strings.Fields(tt.line))
			if err != nil {
				t.Fatal(err)
			}
			p, err := c.Plan(tt.on)
			if err != nil {
				t.Fatal(err)
			}
			if got := c.Arguments(p, tt.env); !slices.Equal(got, strings.Fields(tt.want)) {
				t.Errorf("got %q, want %q", strings.Join(got, " "), tt.want)
			}
		})
	}
}

// Ranks fit into the slots of a plan unless oversubscription is allowed, and
// no guest is left without a rank unless the user asked for so many.
func TestPlanHoldsItsRanks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &Command{Flavour: ompi, Ranks: rapid.IntRange(0, 64).Draw(t, "ranks"), Oversubscribe: rapid.Bool().Draw(t, "oversubscribe")}
		c.Contexts = []Context{{Ranks: c.Ranks, Program: "p"}}
		c.CPUs = rapid.IntRange(0, 8).Draw(t, "cpus")
		c.Nodes = rapid.IntRange(0, 6).Draw(t, "nodes")
		var on Resources
		if rapid.Bool().Draw(t, "embedded") {
			on = machine(rapid.IntRange(1, 16).Draw(t, "here"))
		} else {
			on = cluster(rapid.SliceOfN(rapid.IntRange(1, 16), 1, 6).Draw(t, "cluster")...)
		}
		p, err := c.Plan(on)
		if err != nil {
			if ExitCode(err) != ExitSlots || c.Oversubscribe {
				t.Fatal(err)
			}
			return
		}
		slots := 0
		for _, g := range p.Guests {
			slots += g.Slots
			if !c.Oversubscribe && g.Slots > p.CPUs {
				t.Fatalf("%d slots on a guest with %d processors", g.Slots, p.CPUs)
			}
		}
		if slots < p.Ranks {
			t.Fatalf("%d ranks in %d slots", p.Ranks, slots)
		}
		if c.Nodes == 0 && len(p.Guests) > p.Ranks {
			t.Fatalf("%d guests for %d ranks", len(p.Guests), p.Ranks)
		}
	})
}
