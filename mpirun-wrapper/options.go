package wrapper

import (
	_ "embed" // option tables
	"fmt"
	"sort"
	"strings"
	"sync"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// meaning is what an option tells vft. Options of meaningPass only matter to
// the real mpirun.
type meaning string

const (
	meaningPass            meaning = "-"
	meaningRanks           meaning = "ranks"           // number of processes of this program
	meaningHosts           meaning = "hosts"           // list of hosts
	meaningHostfile        meaning = "hostfile"        // file of hosts
	meaningPerNode         meaning = "pernode"         // ranks per guest
	meaningOnePerNode      meaning = "onepernode"      // one rank per guest
	meaningMapBy           meaning = "mapby"           // may hold ppr:N:node and :OVERSUBSCRIBE
	meaningPPR             meaning = "ppr"             // N:node
	meaningNoLocal         meaning = "nolocal"         // no ranks beside mpirun
	meaningOversubscribe   meaning = "oversubscribe"   // more ranks than slots
	meaningNoOversubscribe meaning = "nooversubscribe" // the default
	meaningMCA             meaning = "mca"             // may set the oversubscribe parameter
	meaningExport          meaning = "export"          // VAR or VAR=VALUE
	meaningSetEnv          meaning = "setenv"          // VAR VALUE or VAR=VALUE
	meaningEnvList         meaning = "envlist"         // VAR,VAR
	meaningEnvAll          meaning = "envall"          // everything, the default
	meaningEnvNone         meaning = "envnone"         // nothing
	meaningWdir            meaning = "wdir"            // working directory of the program
	meaningPath            meaning = "path"            // where to look for the program
	meaningFile            meaning = "file"            // a file that mpirun reads
	meaningFiles           meaning = "files"           // several, with commas between
	meaningAppfile         meaning = "appfile"         // a file with the command lines of several programs
	meaningHelp            meaning = "help"
	meaningVersion         meaning = "version"
)

// arity is how many arguments an option takes.
type arity int

const (
	arityOptional arity = -1 // one, unless the line ends
	arityAssign   arity = -2 // NAME VALUE or NAME=VALUE
)

// option is one line of an option table.
type option struct {
	names []string
	arity arity
	means meaning
}

// optionTable finds options by name.
type optionTable struct {
	flavour vftv1.Flavour // unspecified: of both
	byName  map[string]*option
}

//go:embed options_openmpi.txt
var openMPIOptions string

//go:embed options_mpich.txt
var mpichOptions string

var (
	openMPITable = sync.OnceValue(func() *optionTable { return mustTable(vftv1.Flavour_FLAVOUR_OPENMPI, openMPIOptions) })
	mpichTable   = sync.OnceValue(func() *optionTable { return mustTable(vftv1.Flavour_FLAVOUR_MPICH, mpichOptions) })
	unionTable   = sync.OnceValue(func() *optionTable {
		return &optionTable{byName: merged(mpichTable().byName, openMPITable().byName)}
	})
)

func merged(a, b map[string]*option) map[string]*option {
	all := make(map[string]*option, len(a)+len(b))
	for _, m := range []map[string]*option{a, b} {
		for name, o := range m {
			all[name] = o
		}
	}
	return all
}

func tableOf(f vftv1.Flavour) *optionTable {
	switch f {
	case vftv1.Flavour_FLAVOUR_OPENMPI:
		return openMPITable()
	case vftv1.Flavour_FLAVOUR_MPICH:
		return mpichTable()
	default:
		return unionTable()
	}
}

// mustTable reads a table that is part of the program; a test reads it first.
func mustTable(f vftv1.Flavour, text string) *optionTable {
	t, err := readTable(f, text)
	if err != nil {
		panic(err)
	}
	return t
}

func readTable(f vftv1.Flavour, text string) (*optionTable, error) {
	t := &optionTable{flavour: f, byName: map[string]*option{}}
	for i, line := range strings.Split(text, "\n") {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) != 3 {
			return nil, fmt.Errorf("line %d: %q has %d fields, want 3", i+1, line, len(fields))
		}
		o := &option{names: strings.Split(fields[0], ","), means: meaning(fields[2])}
		switch fields[1] {
		case "0", "1", "2":
			o.arity = arity(fields[1][0] - '0')
		case "?":
			o.arity = arityOptional
		case "=":
			o.arity = arityAssign
		default:
			return nil, fmt.Errorf("line %d: number of arguments is %q", i+1, fields[1])
		}
		for _, n := range o.names {
			if t.byName[n] != nil {
				return nil, fmt.Errorf("line %d: %q is there twice", i+1, n)
			}
			t.byName[n] = o
		}
	}
	return t, nil
}

// find looks up an option as it was written. inline is the value after a "=",
// which MPICH allows.
func (t *optionTable) find(word string) (o *option, inline string, hasInline bool) {
	name := strings.TrimLeft(word, "-")
	if o := t.byName[name]; o != nil {
		return o, "", false
	}
	if t.flavour == vftv1.Flavour_FLAVOUR_OPENMPI {
		return nil, "", false
	}
	if o := mpichTable().byName[strings.ToLower(name)]; o != nil {
		return o, "", false
	}
	if before, value, ok := strings.Cut(name, "="); ok {
		if o := mpichTable().byName[strings.ToLower(before)]; o != nil {
			return o, value, true
		}
	}
	return nil, "", false
}

// isCluster tells whether word is several one-letter options of Open MPI
// without arguments in one, such as -vq.
func (t *optionTable) isCluster(word string) bool {
	if t.flavour == vftv1.Flavour_FLAVOUR_MPICH || strings.HasPrefix(word, "--") || len(word) < 3 {
		return false
	}
	for _, c := range word[1:] {
		if o := openMPITable().byName[string(c)]; o == nil || o.arity != 0 {
			return false
		}
	}
	return true
}

// nearest returns the known option most like name, or "".
func (t *optionTable) nearest(name string) string {
	names := make([]string, 0, len(t.byName))
	for n := range t.byName {
		if len(n) > 2 {
			names = append(names, n)
		}
	}
	sort.Strings(names)
	return nearest(strings.TrimLeft(name, "-"), names)
}

// nearest returns the candidate with the smallest edit distance from word, if
// that is at most about a third of its length.
func nearest(word string, candidates []string) string {
	best, bestDistance := "", (len(word)+2)/3+1
	for _, c := range candidates {
		if d := distance(word, c); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// distance is the Levenshtein distance in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
