// Package version says which vft this is.
package version

import "runtime/debug"

// Number is the release this tree leads to.
const Number = "0.1.0-dev"

// String is the release with the commit it was built from, where that is known.
func String() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				return Number + "+" + s.Value[:12]
			}
		}
	}
	return Number
}
