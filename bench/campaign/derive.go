package campaign

// Derive fills in the figures that follow from a run's events. Total, and what
// the program said itself, are given.
func (r *Run) Derive() {
	const ms, s, mib = 1e6, 1e9, 1 << 20
	if r.Figures == nil {
		r.Figures = map[string]float64{}
	}
	started, ended := -1.0, -1.0
	counts := map[string]float64{"checkpoints": 0, "restarts": 0, "migrations": 0}
	sums := map[string]float64{}
	lists := map[string][]float64{}
	for _, e := range r.Events {
		figure := func(name string) float64 { return float64(e.Figures[name]) }
		switch e.Kind {
		case "started":
			if started < 0 {
				started = e.At
			}
		case "ended":
			ended = e.At
		case "checkpoint":
			counts["checkpoints"]++
			sums["paused"] += figure("pause") / s
			lists["pause"] = append(lists["pause"], figure("pause")/ms)
			lists["hold"] = append(lists["hold"], figure("hold")/ms)
			lists["commit"] = append(lists["commit"], figure("took")/s)
			lists["size"] = append(lists["size"], figure("size")/mib)
		case "restarted":
			counts["restarts"]++
			for _, name := range []string{"lost", "detect", "fence", "restore"} {
				sums[name] += figure(name) / s
			}
			sums["redone"] += max(0, figure("lost")-figure("detect")) / s
		case "migrated":
			counts["migrations"]++
			lists["migrate_downtime"] = append(lists["migrate_downtime"], figure("downtime")/ms)
			lists["migrate_total"] = append(lists["migrate_total"], figure("took")/s)
		}
	}
	if started < 0 {
		return // natively, or it never came that far
	}
	for _, figures := range []map[string]float64{counts, sums} {
		for name, v := range figures {
			r.Figures[name] = v
		}
	}
	for name, values := range lists {
		r.Figures[name] = Of(values).Median
	}
	r.Figures["boot"] = started
	if ended < 0 {
		if r.Outcome != Verified {
			return
		}
		// mpirun-vft may be gone before it hears of the job's end.
		ended = r.Figures["total"]
	}
	r.Figures["job"] = ended - started
	r.Figures["compute"] = ended - started
	for _, name := range []string{"paused", "redone", "detect", "fence", "restore"} {
		r.Figures["compute"] -= r.Figures[name]
	}
	if total, ok := r.Figures["total"]; ok {
		r.Figures["finish"] = total - ended
	}
}
