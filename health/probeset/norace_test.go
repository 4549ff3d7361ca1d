//go:build !race

package probeset

const raceEnabled = false
