//go:build race

package probeset

const raceEnabled = true
