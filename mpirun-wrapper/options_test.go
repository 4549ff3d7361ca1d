package wrapper

import (
	"testing"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func TestOptionTables(t *testing.T) {
	for flavour, text := range map[vftv1.Flavour]string{
		vftv1.Flavour_FLAVOUR_OPENMPI: openMPIOptions, vftv1.Flavour_FLAVOUR_MPICH: mpichOptions,
	} {
		if _, err := readTable(flavour, text); err != nil {
			t.Errorf("%v: %v", flavour, err)
		}
	}
}

// The program is found with the options of both flavours at once, which works
// only while none takes different numbers of arguments.
func TestFlavoursAgreeOnArity(t *testing.T) {
	for name, a := range openMPITable().byName {
		b := mpichTable().byName[name]
		if b == nil || a.means == meaningHelp {
			continue
		}
		if a.arity != b.arity {
			t.Errorf("-%s takes %d arguments in Open MPI and %d in MPICH", name, a.arity, b.arity)
		}
	}
}

func TestNearest(t *testing.T) {
	for word, want := range map[string]string{"intervall": "interval", "node": "nodes", "xyzzy": "", "quite": "quiet"} {
		var names []string
		for n := range ownOptions() {
			names = append(names, n)
		}
		if got := nearest(word, names); got != want {
			t.Errorf("nearest(%q) = %q, want %q", word, got, want)
		}
	}
}
