package wrapper

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// Command is a command line as understood. Ask Show first: when it is set the
// command only wants to be told something.
type Command struct {
	Own
	Show          Show
	ShowArgs      []string // Show is help or version: the arguments for the machine's own mpirun
	Flavour       vftv1.Flavour
	Contexts      []Context
	Env           []string // KEY=VALUE of mpirun in guest 0
	Dir           string   // working directory
	Hosts         []Host   // named by the user, each once, in order; nil: none named
	Ranks         int      // of all contexts; 0: one per slot
	RanksPerGuest int      // 0: not limited
	Oversubscribe bool     // ranks may exceed slots
	NoLocal       bool     // guest 0 runs no ranks
	Files         []string // absolute paths of files that mpirun itself reads
}

// Show is something to print instead of running anything.
type Show string

// What a command can ask to be shown.
const (
	ShowNothing Show = ""
	ShowOwn     Show = "vft-help"
	ShowHelp    Show = "help"
	ShowVersion Show = "version"
)

// Context is one program of a command line.
type Context struct {
	Ranks   int      // 0: not given
	Options []string // for the real mpirun, without host lists
	Program string   // as written
	Path    string   // where it was found
	Args    []string
	Dir     string // its working directory, absolute
	Hosts   []Host // Open MPI: hosts of this context alone, when it is not the first

	set map[string]string // variables that options give a value
}

// Parser reads command lines.
type Parser struct {
	Env Environ
	Dir string // working directory
	// Flavour tells what a program is linked with, unspecified for one that
	// uses neither MPI. nil: every program is taken to use neither.
	Flavour func(path string) (vftv1.Flavour, error)
	// InImage finds a program that this machine lacks in the guest image, by
	// its name or absolute path. nil: there are none.
	InImage func(name string) (path string, ok bool)
}

// Parse reads the arguments after the command's name. Its errors are [*Error].
func (p *Parser) Parse(args []string) (*Command, error) {
	// Which words are options depends on the flavour, and the flavour on the
	// program: find the program with the options of both, then read strictly.
	loose, err := p.scan(args, unionTable())
	if err != nil {
		return nil, err
	}
	switch {
	case loose.own.Help:
		return &Command{Own: loose.own, Show: ShowOwn}, nil
	case loose.show == ShowHelp, loose.show == ShowVersion && !loose.hasProgram():
		return &Command{Own: loose.own, Show: loose.show, ShowArgs: loose.showArgs}, nil
	}
	if err := loose.complete(); err != nil {
		return nil, err
	}
	if loose.own.MPI != vftv1.Flavour_FLAVOUR_UNSPECIFIED {
		return p.parseAs(args, loose.own.MPI)
	}
	flavour, err := p.flavourOf(loose)
	if err != nil {
		return nil, err
	}
	if flavour != vftv1.Flavour_FLAVOUR_UNSPECIFIED {
		return p.parseAs(args, flavour)
	}
	// Not an MPI program, a script perhaps: whoever's options these are.
	cmd, err := p.parseAs(args, vftv1.Flavour_FLAVOUR_OPENMPI)
	var unknown *unknownOptionError
	if errors.As(err, &unknown) {
		if other, oerr := p.parseAs(args, vftv1.Flavour_FLAVOUR_MPICH); oerr == nil {
			return other, nil
		}
	}
	return cmd, err
}

// flavourOf asks what the programs are linked with.
func (p *Parser) flavourOf(s *scanned) (vftv1.Flavour, error) {
	none := vftv1.Flavour_FLAVOUR_UNSPECIFIED
	if p.Flavour == nil {
		return none, nil
	}
	found, by := none, ""
	for i := range s.contexts {
		c := &s.contexts[i]
		path, err := p.locate(c, none)
		if err != nil {
			return none, err
		}
		if _, serr := os.Stat(path); serr != nil {
			continue // told later, or in the image
		}
		f, err := p.Flavour(path)
		var known *Error
		if errors.As(err, &known) {
			return none, known
		}
		if err != nil {
			return none, failf(ExitData, "cannot tell which MPI %s uses (%w); say so with --vft-mpi openmpi or --vft-mpi mpich", path, err)
		}
		switch {
		case f == none:
		case found == none:
			found, by = f, c.program
		case f != found:
			return none, failf(ExitUsage, "%s and %s are linked with different MPI implementations and cannot run in one job; build both with the same one", by, c.program)
		}
	}
	return found, nil
}

// parseAs reads args by the rules of one flavour.
func (p *Parser) parseAs(args []string, f vftv1.Flavour) (*Command, error) {
	s, err := p.scan(args, tableOf(f))
	if err != nil {
		return nil, err
	}
	if s.show != ShowNothing {
		return &Command{Own: s.own, Show: s.show, ShowArgs: s.showArgs, Flavour: f}, nil
	}
	if err := s.complete(); err != nil {
		return nil, err
	}
	cmd := &Command{Own: s.own, Flavour: f, Dir: p.Dir}
	environment := newGuestEnv(p.Env)
	hosts := &hostArgs{flavour: f, dir: p.Dir}
	for i := range s.contexts {
		if err := p.interpret(cmd, i, &s.contexts[i], environment, hosts); err != nil {
			return nil, err
		}
	}
	if cmd.Hosts, err = hosts.global(); err != nil {
		return nil, err
	}
	for i := range cmd.Contexts {
		if cmd.Contexts[i].Hosts, err = hosts.of(i); err != nil {
			return nil, err
		}
	}
	cmd.Env = environment.list()
	if v, ok := p.Env.Lookup("OMPI_MCA_rmaps_base_oversubscribe"); ok && f == vftv1.Flavour_FLAVOUR_OPENMPI && isTrue(v) {
		cmd.Oversubscribe = true
	}
	if f == vftv1.Flavour_FLAVOUR_MPICH {
		cmd.Oversubscribe = true // hydra knows no other way
	}
	return cmd, cmd.count()
}

// count sums the ranks and checks that the contexts agree.
func (c *Command) count() error {
	without := slices.IndexFunc(c.Contexts, func(x Context) bool { return x.Ranks == 0 })
	if without < 0 {
		for _, x := range c.Contexts {
			c.Ranks += x.Ranks
		}
		return nil
	}
	if c.Flavour == vftv1.Flavour_FLAVOUR_MPICH && (len(c.Contexts) > 1 || c.Hosts == nil && c.RanksPerGuest == 0) {
		for i := range c.Contexts { // hydra starts one
			c.Ranks += max(1, c.Contexts[i].Ranks)
		}
		return nil
	}
	if len(c.Contexts) > 1 {
		return failf(ExitUsage, "with several programs each needs its number of ranks: give -np N for %s", c.Contexts[without].Program)
	}
	return nil
}

// interpret takes the options of one context into cmd.
func (p *Parser) interpret(cmd *Command, index int, in *scannedContext, env *guestEnv, hosts *hostArgs) error {
	out := Context{Program: in.program, Args: in.args, Dir: in.dir(p.Dir)}
	for _, u := range in.options {
		keep := true
		var err error
		switch value := u.value(); u.option.means {
		case meaningRanks:
			out.Ranks, err = ranks(u)
		case meaningHosts, meaningHostfile:
			keep = false
			err = hosts.add(index, u.option.means, value)
		case meaningPerNode, meaningOnePerNode, meaningPPR, meaningMapBy:
			err = cmd.place(u)
		case meaningNoLocal:
			cmd.NoLocal = true
		case meaningOversubscribe:
			cmd.Oversubscribe = true
		case meaningNoOversubscribe:
			cmd.Oversubscribe = false
		case meaningMCA:
			if u.values[0] == "rmaps_base_oversubscribe" && isTrue(u.values[1]) {
				cmd.Oversubscribe = true
			}
		case meaningExport, meaningSetEnv, meaningEnvList, meaningEnvAll, meaningEnvNone:
			env.option(u)
			out.assign(u)
		case meaningFile, meaningFiles:
			err = cmd.file(u)
		}
		if err != nil {
			return err
		}
		if keep {
			out.Options = append(out.Options, u.words...)
		}
	}
	if in.dashes {
		out.Options = append(out.Options, "--")
	}
	path, err := p.locate(in, cmd.Flavour)
	if err != nil {
		return err
	}
	if err := p.check(in.program, path); err != nil {
		return err
	}
	out.Path = path
	cmd.Contexts = append(cmd.Contexts, out)
	return nil
}

// assign notes a variable that an option gives a value.
func (c *Context) assign(u used) {
	if u.option.means != meaningExport && u.option.means != meaningSetEnv {
		return
	}
	key, value, ok := strings.Cut(u.value(), "=")
	if !ok && len(u.values) == 2 {
		value, ok = u.values[1], true
	}
	if ok {
		if c.set == nil {
			c.set = map[string]string{}
		}
		c.set[key] = value
	}
}

// maxRanks is far above what a job can have and far below overflow.
const maxRanks = 1 << 20

func ranks(u used) (int, error) {
	n, err := strconv.Atoi(u.value())
	switch {
	case err != nil || n > maxRanks:
		return 0, failf(ExitUsage, "%s %q: give the number of ranks to start", u.words[0], u.value())
	case n < 0:
		return 0, failf(ExitUsage, "%s %d: a negative number of ranks; give 1 or more", u.words[0], n)
	case n == 0:
		return 0, failf(ExitUsage, "%s 0 starts nothing; give 1 or more, or leave it out", u.words[0])
	}
	return n, nil
}

// place reads the options that say how many ranks one guest gets.
func (c *Command) place(u used) error {
	perNode := func(v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > maxRanks {
			return failf(ExitUsage, "%s %q: give the number of ranks per node, 1 or more", u.words[0], v)
		}
		c.RanksPerGuest = n
		return nil
	}
	ppr := func(v string) error {
		n, object, ok := strings.Cut(v, ":")
		if ok && strings.EqualFold(object, "node") {
			return perNode(n)
		}
		return nil // of sockets and the like: mpirun in the guest sees to it
	}
	switch u.option.means {
	case meaningOnePerNode:
		c.RanksPerGuest = 1
	case meaningPerNode:
		return perNode(u.value())
	case meaningPPR:
		return ppr(u.value())
	case meaningMapBy:
		if c.Flavour != vftv1.Flavour_FLAVOUR_OPENMPI {
			return nil
		}
		words := strings.Split(u.value(), ":")
		for _, w := range words[1:] {
			for _, m := range strings.Split(w, ",") {
				switch strings.ToUpper(m) {
				case "OVERSUBSCRIBE":
					c.Oversubscribe = true
				case "NOOVERSUBSCRIBE":
					c.Oversubscribe = false
				}
			}
		}
		if strings.EqualFold(words[0], "ppr") && len(words) >= 3 {
			return ppr(words[1] + ":" + words[2])
		}
	}
	return nil
}

// file notes files that mpirun reads in guest 0.
func (c *Command) file(u used) error {
	names := []string{u.value()}
	if u.option.means == meaningFiles {
		names = strings.Split(u.value(), ",")
	}
	for _, name := range names {
		path := under(c.Dir, name)
		if _, err := os.Stat(path); err != nil {
			if !strings.ContainsRune(name, filepath.Separator) {
				continue // a parameter set that comes with mpirun
			}
			return failf(ExitData, "%s %s: %w", u.words[0], name, err)
		}
		if !slices.Contains(c.Files, path) {
			c.Files = append(c.Files, path)
		}
	}
	return nil
}

func under(dir, name string) string {
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(dir, name)
}

func isTrue(v string) bool {
	switch strings.ToLower(v) {
	case "1", "true", "yes", "t", "y":
		return true
	}
	return false
}
