package coordinator

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/ckpt/level"
	"github.com/mpirun-vft/vft/coordinator/fsm"
)

// levelsOf returns the levels of a job's epochs, local first.
func levelsOf(spec *vftv1.JobSpec) ([]*vftv1.EpochLevel, error) {
	out := []*vftv1.EpochLevel{{Level: fsm.LevelLocal, Nodes: 1, Needs: 1}}
	for i, text := range spec.GetLevels() {
		l, err := level.Parse(text)
		if err != nil {
			return nil, err
		}
		if l.String() != text {
			return nil, fmt.Errorf("level %s: write it as %s", text, l)
		}
		if slices.Contains(spec.GetLevels()[:i], text) {
			return nil, fmt.Errorf("level %s is asked for twice", text)
		}
		switch l.Kind {
		case level.KindLocal:
		case level.KindPartner:
			out = append(out, &vftv1.EpochLevel{Level: text, Nodes: 2, Needs: 1})
		case level.KindRS:
			out = append(out, &vftv1.EpochLevel{Level: text, Nodes: uint32(l.Data + l.Parity), Needs: uint32(l.Data)})
		case level.KindDir, level.KindS3:
			out = append(out, &vftv1.EpochLevel{Level: text, Outside: true})
		}
	}
	return out, nil
}

// checkLevels says what is wrong with what a job asks of its checkpoints.
func checkLevels(spec *vftv1.JobSpec) error {
	levels, err := levelsOf(spec)
	if err != nil {
		return err
	}
	if c := spec.GetCommit(); c != "" && !slices.ContainsFunc(levels, func(l *vftv1.EpochLevel) bool { return l.GetLevel() == c }) {
		return fmt.Errorf("checkpoints shall be committed at level %s, but not kept there", c)
	}
	if spec.GetBandwidth() < 0 {
		return fmt.Errorf("the bandwidth for levels is negative")
	}
	return nil
}

// checkNodes says which of the levels nodes that are alive cannot keep: any of
// them may come to run a guest of the job.
func (c *Coordinator) checkNodes(spec *vftv1.JobSpec) error {
	var nodes []*vftv1.Node
	for _, n := range c.store.nodes() {
		if c.alive(n.GetId()) {
			nodes = append(nodes, n)
		}
	}
	return kept(spec.GetLevels(), nodes)
}

// kept says which levels nodes cannot keep, and what to do about it. Levels of
// whole copies every node can keep.
func kept(levels []string, nodes []*vftv1.Node) error {
	var errs []error
	for _, text := range levels {
		l, err := level.Parse(text)
		if err != nil {
			return err
		}
		var cannot []string
		for _, n := range nodes {
			if !keeps(n, l) {
				cannot = append(cannot, n.GetId())
			}
		}
		if len(cannot) == 0 {
			continue
		}
		hint := "their vft is too old for it"
		switch l.Kind {
		case level.KindRS:
			hint = "shards are not implemented; use partner, dir: or s3:"
		case level.KindDir:
			hint = "their operator can allow it by naming the directory, or one above it, in level_directories of their node.json"
		}
		errs = append(errs, fmt.Errorf("nodes %s cannot keep level %s: %s", strings.Join(cannot, ", "), l, hint))
	}
	return errors.Join(errs...)
}

// keeps says whether a node says that it can keep a level.
func keeps(n *vftv1.Node, l level.Spec) bool {
	switch l.Kind {
	case level.KindLocal, level.KindPartner:
		return true
	case level.KindDir:
		return slices.ContainsFunc(n.GetLevels(), func(text string) bool {
			dir, ok := strings.CutPrefix(text, string(level.KindDir)+":")
			return ok && (l.Path == dir || strings.HasPrefix(l.Path, strings.TrimSuffix(dir, "/")+"/"))
		})
	default:
		return slices.Contains(n.GetLevels(), string(l.Kind))
	}
}

// required is the level at which a new epoch must be safe to be committed: the
// one asked for, or with too few nodes for it the one of the others that
// survives the loss of most.
func required(levels []*vftv1.EpochLevel, commit string, alive int) string {
	best := levels[0]
	for _, l := range levels {
		if l.GetLevel() == commit && (l.GetOutside() || int(l.GetNodes()) <= alive) {
			return commit
		}
		if !l.GetOutside() && int(l.GetNodes()) <= alive && l.GetNodes()-l.GetNeeds() > best.GetNodes()-best.GetNeeds() {
			best = l
		}
	}
	if commit == "" {
		return levels[0].GetLevel()
	}
	return best.GetLevel()
}
