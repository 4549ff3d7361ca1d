package coordinator

import (
	"fmt"
	"slices"

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
