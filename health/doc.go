// Package health turns what a machine tells about itself into a verdict.
//
// Probes (packages below this one) return readings; an [Engine] applies rules
// to readings and their rates and keeps the verdict; a [Runner] runs the
// probes at their intervals and feeds the engine. docs/HEALTH.md specifies all
// of it.
package health
