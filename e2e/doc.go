// Package e2e holds the end-to-end tests: real QEMU, real Open MPI and MPICH,
// real processes, driven through the commands that users type. They are built
// with the tag e2e and need what `make image workloads` makes.
package e2e
