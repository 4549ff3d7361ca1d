package wrapper

import (
	"fmt"
	"slices"
	"strings"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// Arguments is the command line for the real mpirun on the guests of p,
// without the host list for all of them. programEnv are variables that the
// programs need and mpirun itself does not.
func (c *Command) Arguments(p *Plan, programEnv []string) []string {
	var args []string
	for i, x := range c.Contexts {
		if i > 0 {
			args = append(args, ":")
		}
		if p.hosts != nil && p.hosts[i] != nil {
			list := make([]string, len(p.hosts[i]))
			for j, g := range p.hosts[i] {
				list[j] = fmt.Sprintf("%s:%d", g.Name, g.Slots)
			}
			args = append(args, "--host", strings.Join(list, ","))
		}
		options := x.Options
		dashes := len(options) > 0 && options[len(options)-1] == "--"
		if dashes {
			options = options[:len(options)-1]
		}
		args = append(args, options...)
		for _, kv := range programEnv {
			key, value, _ := strings.Cut(kv, "=")
			if own, ok := x.variable(c, key); ok && own != "" {
				value += ":" + own // all of these are search paths
			}
			if c.Flavour == vftv1.Flavour_FLAVOUR_MPICH {
				args = append(args, "-env", key, value)
			} else {
				args = append(args, "-x", key+"="+value) // of several the last counts
			}
		}
		if dashes {
			args = append(args, "--")
		}
		args = append(args, x.Program)
		args = append(args, x.Args...)
	}
	return args
}

// variable is the value that the user gave a variable for this program.
func (x Context) variable(c *Command, key string) (string, bool) {
	if v, ok := x.set[key]; ok {
		return v, true
	}
	return Environ(c.Env).Lookup(key)
}

// mergeEnv adds variables to env, in place of those of the same name.
func mergeEnv(env, add []string) []string {
	names := map[string]bool{}
	for _, kv := range add {
		k, _, _ := strings.Cut(kv, "=")
		names[k] = true
	}
	out := slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		k, _, _ := strings.Cut(kv, "=")
		return names[k]
	})
	return append(out, add...)
}
