package wrapper

import (
	"slices"
	"strconv"
	"strings"

	"github.com/mpirun-vft/vft/ckpt/level"
)

// readLevels reads a list of checkpoint levels. Local is always among them and
// comes first.
func readLevels(v string) ([]level.Spec, error) {
	out := []level.Spec{{Kind: level.KindLocal}}
	for text := range strings.SplitSeq(v, ",") {
		l, err := readLevel("levels", text)
		switch {
		case err != nil:
			return nil, err
		case l.Kind == level.KindLocal:
			continue
		case slices.Contains(out, l):
			return nil, failf(ExitUsage, "--vft-levels %s: %s is there twice", v, l)
		}
		out = append(out, l)
	}
	return out, nil
}

func readLevel(option, text string) (level.Spec, error) {
	l, err := level.Parse(text)
	if err != nil {
		return l, failf(ExitUsage, "--vft-%s: %w", option, err)
	}
	return l, nil
}

// planLevels decides where checkpoints are kept and at which level one must be
// safe to count. Unless the user says otherwise: on the guest's node and a
// partner as far as there are nodes, and at the first level that survives the
// loss of a node without anything outside the nodes.
func (c *Command) planLevels(p *Plan, r Resources) error {
	levels := c.Levels
	if levels == nil {
		levels = []level.Spec{{Kind: level.KindLocal}}
		if len(r.Nodes) > 1 {
			levels = append(levels, level.Spec{Kind: level.KindPartner})
		}
	}
	for _, l := range levels {
		need := 1
		switch l.Kind {
		case level.KindPartner:
			need = 2
		case level.KindRS:
			need = l.Data + l.Parity
		case level.KindLocal, level.KindDir, level.KindS3:
		}
		switch {
		case need > 1 && r.Embedded:
			return failf(ExitUsage, "--vft-levels: %s needs %d nodes, and without a cluster there is only this machine; name a cluster with --vft-cluster FILE, or keep checkpoints at dir:/PATH", l, need)
		case l.Kind == level.KindRS && need > len(r.Nodes):
			return failf(ExitSlots, "--vft-levels: %s needs %d nodes and the cluster has %d that are alive; ask for fewer shards", l, need, len(r.Nodes))
		}
		p.Levels = append(p.Levels, l.String())
	}
	commit := levels[0]
	if i := slices.IndexFunc(levels, func(l level.Spec) bool { return l.Kind == level.KindPartner || l.Kind == level.KindRS }); i >= 0 {
		commit = levels[i]
	}
	if c.Commit != nil {
		if commit = *c.Commit; !slices.Contains(levels, commit) {
			return failf(ExitUsage, "--vft-commit %s: checkpoints are not kept there; they are at %s (see --vft-levels)", commit, strings.Join(p.Levels, ","))
		}
	}
	p.Commit = commit.String()
	return nil
}

// bandwidth reads bytes per second.
func bandwidth(v string) (int64, error) {
	bad := failf(ExitUsage, "--vft-bandwidth %q: give bytes per second, such as 100M or 1G; 0: no limit", v)
	digits := strings.TrimRight(v, "KkMmGgIiBb/s")
	shift, ok := map[string]int{"": 0, "k": 10, "m": 20, "g": 30}[strings.TrimRight(strings.ToLower(v[len(digits):]), "ib/s")]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || !ok || n < 0 || n > (1<<50)>>shift {
		return 0, bad
	}
	return n << shift, nil
}
