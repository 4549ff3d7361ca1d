// Package vm runs one guest in one QEMU process: it builds the command line,
// starts or adopts the process, takes snapshots of the running guest with one
// of three engines, and starts a guest from a snapshot.
//
// The entry points are Spec.Argv, Start, Adopt, Restore, Machine.Snapshot and
// Probe. docs/VM.md describes the states and sequences.
package vm
