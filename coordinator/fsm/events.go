package fsm

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// LastEvent is the number of a job's newest event.
func LastEvent(j *vftv1.Job) uint64 {
	if n := len(j.GetEvents()); n > 0 {
		return j.GetEvents()[n-1].GetNumber()
	}
	return 0
}

func (t *transition) event(kind, text string, figures map[string]int64, labels map[string]string) {
	ev := &vftv1.Event{
		Number: LastEvent(t.job) + 1, At: t.at, Kind: kind, Text: text,
		Figures: maps.Clone(figures), Labels: maps.Clone(labels),
	}
	t.job.Events = append(t.job.GetEvents(), ev)
	if n := len(t.job.Events); n > MaxEvents {
		t.job.Events = t.job.Events[n-MaxEvents:]
	}
}

func (t *transition) eventCommitted(e *vftv1.Epoch) {
	var size, pause int64
	engine := ""
	for _, p := range e.GetParts() {
		size += p.GetSize()
		pause = max(pause, p.GetPause())
		engine = engineName(p.GetEngine())
	}
	took := e.GetEndedAt() - e.GetBegunAt()
	text := fmt.Sprintf("checkpoint %d committed in %s (pause %s, %s)", e.GetNumber(), duration(took), duration(pause), binarySize(size))
	labels := map[string]string{"trigger": e.GetTrigger(), "engine": engine}
	if want := orElse(t.job.GetSpec().GetCommit(), LevelLocal); e.GetRequired() != want {
		text += fmt.Sprintf(", degraded: %s instead of %s", e.GetRequired(), want)
		labels["degraded"] = e.GetRequired()
	}
	t.event("checkpoint", text, map[string]int64{
		"epoch": int64(e.GetNumber()), "took": took, "pause": pause, "hold": e.GetHold(), "size": size,
	}, labels)
}

// eventLevel tells that an epoch has reached a level, has lost and regained
// it, or could not reach it.
func (t *transition) eventLevel(e *vftv1.Epoch, l, was *vftv1.EpochLevel, added []string) {
	labels := map[string]string{"level": l.GetLevel()}
	figures := map[string]int64{"epoch": int64(e.GetNumber())}
	switch l.GetState() {
	case vftv1.LevelState_LEVEL_STATE_SAFE:
		if was.GetAt() != 0 && len(added) > 0 {
			labels["nodes"] = strings.Join(added, ",")
			what := "copies of checkpoint " + strconv.FormatUint(e.GetNumber(), 10)
			if !WholeCopies(l) {
				what += " at " + l.GetLevel()
			}
			t.event("copies-restored", what+" restored on "+strings.Join(added, ", "), figures, labels)
			return
		}
		figures["took"], figures["size"] = t.at-e.GetEndedAt(), l.GetBytes()
		t.event("level-safe", fmt.Sprintf("checkpoint %d is safe at %s, %s after its commit (%s written)",
			e.GetNumber(), l.GetLevel(), duration(t.at-e.GetEndedAt()), binarySize(l.GetBytes())), figures, labels)
	case vftv1.LevelState_LEVEL_STATE_FAILED:
		labels["reason"] = l.GetReason()
		t.event("level-failed", fmt.Sprintf("checkpoint %d did not reach %s, which will be tried again: %s",
			e.GetNumber(), l.GetLevel(), l.GetReason()), figures, labels)
	case vftv1.LevelState_LEVEL_STATE_UNSPECIFIED, vftv1.LevelState_LEVEL_STATE_PENDING:
	}
}

func (t *transition) eventRestarted(op *vftv1.Operation, figures map[string]int64) {
	from := "the beginning"
	if op.GetEpoch() != 0 {
		from = fmt.Sprintf("checkpoint %d", op.GetEpoch())
	}
	var spent []string
	for _, f := range []struct{ key, name string }{{"detect", "detection"}, {"fence", "fencing"}, {"restore", "restore"}} {
		if v, ok := figures[f.key]; ok {
			spent = append(spent, f.name+" "+duration(v))
		}
	}
	text := "restarted from " + from
	if len(spent) > 0 {
		text += ": " + strings.Join(spent, ", ")
	}
	if lost, ok := figures["lost"]; ok {
		text += "; " + duration(lost) + " of work lost"
	}
	if t.job.GetFilling() {
		text += "; their memory follows"
	}
	figures = merged(figures, map[string]int64{"epoch": int64(op.GetEpoch()), "took": t.at - op.GetBegunAt(), "incarnation": int64(op.GetIncarnation())})
	t.event("restarted", text, figures, map[string]string{"reason": op.GetReason()})
}

// eventFilled tells how long after they went on the guests had their memory.
func (t *transition) eventFilled(figures map[string]int64) {
	took := t.at - t.job.GetRunningSince()
	text := "all guests have their memory, " + duration(took) + " after they went on"
	if n := figures["demanded"]; n > 0 {
		text += fmt.Sprintf("; they waited for %s, at most %s for one", count(int(n), "page"), duration(figures["wait"]))
	}
	t.event("filled", text, merged(figures, map[string]int64{
		"took": took, "epoch": int64(t.job.GetRestoredFrom()), "incarnation": int64(t.job.GetIncarnation()),
	}), nil)
}

func (t *transition) eventEnded() {
	x := t.job.GetExit()
	text := "ended"
	switch x.GetCause() {
	case vftv1.ExitCause_EXIT_CAUSE_PROGRAM:
		text = fmt.Sprintf("ended: exit code %d", x.GetCode())
	case vftv1.ExitCause_EXIT_CAUSE_STOPPED:
		text = "ended: stopped"
	case vftv1.ExitCause_EXIT_CAUSE_FAILED:
		text = "failed"
	case vftv1.ExitCause_EXIT_CAUSE_CLIENT_GONE:
		text = "ended: its client is gone"
	case vftv1.ExitCause_EXIT_CAUSE_UNSPECIFIED:
	}
	if x.GetMessage() != "" {
		text += ": " + x.GetMessage()
	}
	t.event("ended", text, map[string]int64{"code": int64(x.GetCode()), "restarts": int64(t.job.GetRestarts())}, nil)
}

// eventHealth tells what a node says of itself.
func (t *transition) eventHealth(n *vftv1.Node) {
	h := n.GetHealth()
	state := HealthWord(h.GetState())
	text := fmt.Sprintf("node %s is %s", n.GetId(), state)
	labels := map[string]string{"node": n.GetId(), "state": state}
	figures := map[string]int64{"lead": h.GetLead(), "confidence_ppm": int64(h.GetConfidence() * 1e6)}
	if len(h.GetReasons()) > 0 {
		r := h.GetReasons()[0]
		text += fmt.Sprintf(" (confidence %.0f %%, lead %s): %s", 100*h.GetConfidence(), duration(h.GetLead()), r.GetEvidence())
		labels["rule"], labels["evidence"] = r.GetRule(), r.GetEvidence()
	}
	t.event("node-health", text, figures, labels)
}

// HealthWord is a node's state in a word.
func HealthWord(h vftv1.HealthState) string {
	if h == vftv1.HealthState_HEALTH_STATE_UNSPECIFIED {
		return "unknown"
	}
	return strings.ToLower(strings.TrimPrefix(h.String(), "HEALTH_STATE_"))
}

func engineName(e vftv1.Engine) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(e.String(), "ENGINE_")), "_", "-")
}

func nodeList(guests []*vftv1.Guest) string {
	var names []string
	for _, g := range guests {
		if !slices.Contains(names, g.GetNode()) {
			names = append(names, g.GetNode())
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// duration writes nanoseconds for people: 4 ms, 3.0 s, 2 min 5 s.
func duration(ns int64) string {
	const us, ms, s = 1_000, 1_000_000, 1_000_000_000
	switch {
	case ns < 0:
		return "0 ms"
	case ns < ms:
		return fmt.Sprintf("%d us", ns/us)
	case ns < s:
		return fmt.Sprintf("%d ms", ns/ms)
	case ns < 60*s:
		return fmt.Sprintf("%.1f s", float64(ns)/s)
	case ns < 3600*s:
		return fmt.Sprintf("%d min %d s", ns/(60*s), ns/s%60)
	}
	return fmt.Sprintf("%d h %d min", ns/(3600*s), ns/(60*s)%60)
}

func binarySize(n int64) string {
	const kib, mib, gib = 1 << 10, 1 << 20, 1 << 30
	switch {
	case n < kib:
		return fmt.Sprintf("%d B", n)
	case n < mib:
		return fmt.Sprintf("%d KiB", n/kib)
	case n < gib:
		return fmt.Sprintf("%d MiB", n/mib)
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/gib)
}
