// Package stream takes QEMU's migration stream apart into pages of guest RAM
// and the rest, and puts such parts together again into a stream that QEMU
// loads. It knows the streams of the snapshot engines of package vm
// (background snapshot, pre-copy, stop-copy) and what a destination of a
// post-copy migration needs.
//
// A stream has three parts:
//
//   - The head: signature, configuration, and the section that announces the
//     RAM blocks. Kept as it is; [ParseHead] reads from it what is needed.
//   - The pages, in any order. A page may come again; the last one counts.
//   - The tail: the state of all devices and a description of it. Sections of
//     devices do not say how long they are, so the tail is opaque.
//
// All integers in the stream are big-endian. The format is that of QEMU's
// migration/savevm.c and migration/ram.c; docs/VM.md has it in prose.
package stream
