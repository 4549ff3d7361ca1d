// Package level keeps copies of checkpoints outside the node that took them.
//
// A [Spec] names a place; docs/CKPT.md says what lies there.
package level
