//go:build race

package faultfs

// Step is how far apart the points are at which tests let a file system fail.
const Step = 5
