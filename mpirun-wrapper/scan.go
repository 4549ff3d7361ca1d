package wrapper

import (
	"fmt"
	"os"
	"strings"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// scanned is a command line cut into options, programs and arguments.
type scanned struct {
	own      Own
	show     Show
	showArgs []string
	contexts []scannedContext
}

// scannedContext is what stands between two colons.
type scannedContext struct {
	options []used
	dashes  bool // "--" stood before the program
	program string
	args    []string
}

// used is an option as it was used.
type used struct {
	option *option
	words  []string // as written
	values []string // its arguments
}

func (u used) value() string {
	if len(u.values) == 0 {
		return ""
	}
	return u.values[0]
}

// unknownOptionError says that the flavour does not know an option.
type unknownOptionError struct{ word string }

func (e *unknownOptionError) Error() string { return "unknown option " + e.word }

func (s *scanned) hasProgram() bool {
	for _, c := range s.contexts {
		if c.program != "" {
			return true
		}
	}
	return false
}

// complete tells what is missing, if anything.
func (s *scanned) complete() error {
	if !s.hasProgram() {
		return failf(ExitUsage, "no program to run: mpirun-vft [options] PROGRAM [arguments]; --help and --vft-help show the options")
	}
	for i, c := range s.contexts {
		if c.program == "" {
			return failf(ExitUsage, "no program in part %d of the command line (parts are separated by \":\")", i+1)
		}
	}
	return nil
}

// dir is the working directory of the context's program.
func (c *scannedContext) dir(base string) string {
	for _, u := range c.options {
		if u.option.means == meaningWdir {
			base = under(base, u.value())
		}
	}
	return base
}

// scan cuts args by the options in table.
func (p *Parser) scan(args []string, table *optionTable) (*scanned, error) {
	s := &scanned{own: defaultOwn(p.Env)}
	for {
		part, rest, more := cutAtColon(args)
		context, appfile, err := s.context(part, table)
		if err != nil || s.show == ShowHelp {
			return s, err
		}
		if appfile == "" {
			s.contexts = append(s.contexts, *context)
		} else if err := p.appfile(s, context, appfile, table); err != nil {
			return s, err
		}
		if !more {
			return s, nil
		}
		args = rest
	}
}

func cutAtColon(args []string) (part, rest []string, more bool) {
	for i, a := range args {
		if a == ":" {
			return args[:i], args[i+1:], true
		}
	}
	return args, nil, false
}

// context reads the options of one part, up to its program.
func (s *scanned) context(args []string, table *optionTable) (c *scannedContext, appfile string, err error) {
	c = &scannedContext{}
	for len(args) > 0 {
		word := args[0]
		switch {
		case strings.HasPrefix(word, ownPrefix):
			n, err := s.own.take(args)
			if err != nil {
				return nil, "", err
			}
			args = args[n:]
			continue
		case word == "--" && table.flavour != vftv1.Flavour_FLAVOUR_MPICH:
			c.dashes = true
			args = args[1:]
		}
		if len(args) == 0 || c.dashes || !strings.HasPrefix(word, "-") || word == "-" {
			break
		}
		u, err := take(args, table)
		if err != nil {
			return nil, "", err
		}
		switch u.option.means {
		case meaningHelp, meaningVersion:
			s.show, s.showArgs = Show(u.option.means), u.words
			if u.option.means == meaningHelp {
				return c, "", nil
			}
		case meaningAppfile:
			appfile = u.value()
		default:
			c.options = append(c.options, u)
		}
		args = args[len(u.words):]
	}
	if len(args) > 0 {
		c.program, c.args = args[0], args[1:]
	}
	return c, appfile, nil
}

// take reads the option at args[0] with its arguments.
func take(args []string, table *optionTable) (used, error) {
	word := args[0]
	o, inline, hasInline := table.find(word)
	if o == nil {
		if table.isCluster(word) {
			return used{option: &option{means: meaningPass}, words: args[:1]}, nil
		}
		return used{}, unknownOption(word, table)
	}
	want := int(o.arity)
	switch o.arity {
	case arityOptional:
		want = min(1, len(args)-1)
	case arityAssign:
		want = 2
		if first := inline; strings.Contains(first, "=") || !hasInline && len(args) > 1 && strings.Contains(args[1], "=") {
			want = 1
		}
	}
	var values []string
	if hasInline {
		values, want = append(values, inline), want-1
	}
	if want < 0 {
		return used{}, failf(ExitUsage, "option %s takes no value", word)
	}
	if len(args)-1 < want {
		return used{}, failf(ExitUsage, "option %s needs %s after it", word, plural(want, "argument"))
	}
	return used{option: o, words: args[:1+want], values: append(values, args[1:1+want]...)}, nil
}

func unknownOption(word string, table *optionTable) error {
	of := "mpirun"
	switch table.flavour {
	case vftv1.Flavour_FLAVOUR_OPENMPI:
		of = "Open MPI's mpirun"
	case vftv1.Flavour_FLAVOUR_MPICH:
		of = "MPICH's mpiexec"
	}
	hint := "--help lists those there are"
	if near := table.nearest(word); near != "" {
		hint = fmt.Sprintf("did you mean --%s? (%s)", near, hint)
	}
	return &Error{Code: ExitUsage, Msg: fmt.Sprintf("unknown option %s of %s; %s", word, of, hint), Err: &unknownOptionError{word}}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// appfile adds a context for each line of a file of command lines. Options
// beside the file's name go before those of its first line.
func (p *Parser) appfile(s *scanned, outer *scannedContext, name string, table *optionTable) error {
	data, err := os.ReadFile(under(p.Dir, name))
	if err != nil {
		return failf(ExitData, "reading the command lines in %s: %w", name, err)
	}
	found := false
	for i, line := range strings.Split(string(data), "\n") {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		words, err := splitWords(line)
		if err != nil {
			return failf(ExitData, "%s, line %d: %w", name, i+1, err)
		}
		for more := true; more; {
			var part []string
			part, words, more = cutAtColon(words)
			c, nested, err := s.context(part, table)
			if err != nil {
				return err
			}
			if nested != "" {
				return failf(ExitData, "%s, line %d: a file of command lines cannot name another", name, i+1)
			}
			if !found {
				c.options = append(append([]used(nil), outer.options...), c.options...)
			}
			found = true
			s.contexts = append(s.contexts, *c)
		}
	}
	if !found {
		return failf(ExitData, "%s holds no command line; write one per line, such as: -np 2 ./program", name)
	}
	return nil
}

// splitWords cuts a line at blanks outside quotes.
func splitWords(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	var quote rune
	inWord := false
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, inWord = r, true
		case r == ' ' || r == '\t' || r == '\r':
			if inWord {
				words = append(words, word.String())
				word.Reset()
			}
			inWord = false
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("no closing %c", quote)
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}
