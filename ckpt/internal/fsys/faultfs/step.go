//go:build !race

package faultfs

// Step is how far apart the points are at which tests let a file system fail:
// every call is one. Under the race detector, which slows the tests down ten
// times and looks for something else, every fifth.
const Step = 1
