package sidecar

import (
	"context"
	"errors"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/vm"
)

// filling says whether the guest lacks memory that follows, and how it has come
// so far; nil for a guest whose memory was there from the beginning.
func (g *guestVM) filling() (bool, *vftv1.Fill) {
	if g.machine == nil {
		return false, nil
	}
	st := g.machine.FillStats()
	lacks := lacksMemory(g.machine)
	if st == (vm.FillStats{}) && !lacks {
		return false, nil
	}
	return lacks, &vftv1.Fill{
		Took: int64(st.Took), Demanded: st.Requests, Ahead: st.Ahead, Background: st.Background, Wait: int64(st.Max),
	}
}

func lacksMemory(m *vm.Machine) bool {
	select {
	case <-m.Filled():
		return false
	default:
		return true
	}
}

// tellWhenFilled has the leader hear at once that a guest has all of its memory.
func (inc *incarnation) tellWhenFilled(g *guestVM) {
	if !lacksMemory(g.machine) {
		return
	}
	inc.work.run(func(ctx context.Context) {
		select {
		case <-g.machine.Filled():
			inc.s.heartbeatNow()
		case <-ctx.Done():
		}
	})
}

// leaveGrace is how long a process that ends waits for the memory of guests that
// would be lost without it.
const leaveGrace = 5 * time.Second

// awaitMemory gives guests that are to be left the time to get their memory.
func (inc *incarnation) awaitMemory() {
	limit := time.NewTimer(leaveGrace)
	defer limit.Stop()
	for _, g := range inc.all() {
		if g.machine == nil {
			continue
		}
		select {
		case <-g.machine.Filled():
		case <-g.machine.Done():
		case <-limit.C:
			inc.log.Error("a guest is left without all of its memory, and lost", "guest", g.index)
			return
		}
	}
}

func restoreWayOf(r vftv1.Restore) vm.RestoreWay {
	switch r {
	case vftv1.Restore_RESTORE_LAZY:
		return vm.RestoreLazy
	case vftv1.Restore_RESTORE_FILE:
		return vm.RestoreFile
	case vftv1.Restore_RESTORE_PLAIN:
		return vm.RestorePlain
	default:
		return vm.RestoreAuto
	}
}

func protoRestore(w vm.RestoreWay) vftv1.Restore {
	switch w {
	case vm.RestoreLazy:
		return vftv1.Restore_RESTORE_LAZY
	case vm.RestoreFile:
		return vftv1.Restore_RESTORE_FILE
	case vm.RestorePlain:
		return vftv1.Restore_RESTORE_PLAIN
	default:
		return vftv1.Restore_RESTORE_UNSPECIFIED
	}
}

// dataLost says that the guest died because no level could give something back.
func (g *guestVM) dataLost() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.gone
}

// lostForGood says that what could not be had would not be had next time.
func lostForGood(err error) bool {
	if none := (*noHolder)(nil); errors.As(err, &none) {
		return none.lost && len(none.errs) > 0
	}
	return errors.Is(err, ckpt.ErrCorrupt)
}
