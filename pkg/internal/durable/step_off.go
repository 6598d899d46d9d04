//go:build !kamicrash

package durable

// Step marks a durable step. In a build with the tag kamicrash it is where a
// crash test kills the process.
func Step(string) {}
