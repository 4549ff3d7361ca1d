//go:build !race

package quiesce

const racing = false
