package wrapper

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// Host is a line of a host list.
type Host struct {
	Name     string
	Slots    int // ranks that fit; 0: as many as it has processors
	MaxSlots int // ranks that fit with oversubscription; 0: any number
}

// hostArgs gathers the host lists of a command line.
type hostArgs struct {
	flavour vftv1.Flavour
	dir     string
	lists   []contextHosts
}

// contextHosts is what one context says.
type contextHosts struct {
	context     int
	named, file []Host
}

// add reads one option.
func (h *hostArgs) add(context int, m meaning, value string) error {
	if len(h.lists) > 0 && h.flavour == vftv1.Flavour_FLAVOUR_MPICH {
		return failf(ExitUsage, "a second host list (%s); MPICH takes one for the whole command line", value)
	}
	if n := len(h.lists); n == 0 || h.lists[n-1].context != context {
		h.lists = append(h.lists, contextHosts{context: context})
	}
	c := &h.lists[len(h.lists)-1]
	if m == meaningHosts {
		hosts, err := parseHostList(value)
		if err != nil {
			return err
		}
		c.named = append(c.named, hosts...)
		return nil
	}
	data, err := os.ReadFile(under(h.dir, value))
	if err != nil {
		return failf(ExitData, "reading the host file: %w", err)
	}
	hosts, err := parseHostfile(h.flavour, string(data))
	if err != nil {
		return failf(ExitData, "host file %s: %w", value, err)
	}
	if len(hosts) == 0 {
		return failf(ExitData, "host file %s names no host; write one per line, such as: node1 slots=4", value)
	}
	c.file = append(c.file, hosts...)
	return nil
}

// effective applies Open MPI's rule that names filter a host file.
func (c contextHosts) effective() ([]Host, error) {
	if c.file == nil || c.named == nil {
		return mergeHosts(append(append([]Host(nil), c.named...), c.file...)), nil
	}
	inFile := map[string]Host{}
	for _, h := range mergeHosts(c.file) {
		inFile[h.Name] = h
	}
	named := mergeHosts(c.named)
	for i, h := range named {
		f, ok := inFile[h.Name]
		if !ok {
			return nil, failf(ExitHost, "host %s is in the host list but not in the host file; add it there or leave it out here", h.Name)
		}
		named[i].MaxSlots = f.MaxSlots
		if h.Slots == 0 || f.Slots != 0 && f.Slots < h.Slots {
			named[i].Slots = f.Slots
		}
	}
	return named, nil
}

// global is the list of all hosts named anywhere.
func (h *hostArgs) global() ([]Host, error) {
	most := map[string]int{}
	var all []Host
	for _, c := range h.lists {
		hosts, err := c.effective()
		if err != nil {
			return nil, err
		}
		for _, x := range hosts {
			i, seen := most[x.Name]
			if !seen {
				most[x.Name] = len(all)
				all = append(all, x)
				continue
			}
			all[i].Slots = max(all[i].Slots, x.Slots) // the same host for two programs
		}
	}
	return all, nil
}

// of is the list of one context, nil for the first, which uses the global one.
func (h *hostArgs) of(context int) ([]Host, error) {
	for _, c := range h.lists {
		if c.context == context && context > 0 {
			return c.effective()
		}
	}
	return nil, nil
}

// mergeHosts joins lines for the same host. One without a number of slots
// counts for one when there are several.
func mergeHosts(in []Host) []Host {
	at := map[string]int{}
	var out []Host
	for _, h := range in {
		i, seen := at[h.Name]
		if !seen {
			at[h.Name] = len(out)
			out = append(out, h)
			continue
		}
		o := &out[i]
		o.Slots = min(maxRanks, max(1, o.Slots)+max(1, h.Slots))
		o.MaxSlots = max(o.MaxSlots, h.MaxSlots)
	}
	return out
}

// parseHostList reads a:2,b:2 or a,a,b.
func parseHostList(v string) ([]Host, error) {
	var hosts []Host
	for _, word := range strings.Split(v, ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		h, err := parseHost(word)
		if err != nil {
			return nil, failf(ExitUsage, "host list %q: %w", v, err)
		}
		hosts = append(hosts, h)
	}
	if len(hosts) == 0 {
		return nil, failf(ExitUsage, "the host list is empty; give names such as node1:2,node2:2")
	}
	return hosts, nil
}

// parseHost reads NAME, NAME:SLOTS or NAME:* (as many as processors). Without
// a number it has one slot.
func parseHost(word string) (Host, error) {
	name, slots, counted := cutSlots(word)
	h := Host{Name: name, Slots: 1}
	if counted && slots != "*" && slots != "auto" {
		n, err := slotCount(slots)
		if err != nil {
			return Host{}, err
		}
		h.Slots = n
	} else if counted {
		h.Slots = 0
	}
	if _, after, ok := strings.Cut(h.Name, "@"); ok {
		h.Name = after // the user to log in as: nobody logs in to a guest
	}
	return h, checkHostName(h.Name)
}

// cutSlots takes the number after the colon off; an IPv6 address keeps its colons.
func cutSlots(word string) (name, slots string, counted bool) {
	if strings.HasPrefix(word, "[") {
		if i := strings.IndexByte(word, ']'); i > 0 {
			slots, counted = strings.CutPrefix(word[i+1:], ":")
			return word[1:i], slots, counted
		}
	}
	if strings.Count(word, ":") > 1 {
		return word, "", false
	}
	return strings.Cut(word, ":")
}

func slotCount(v string) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > maxRanks {
		return 0, fmt.Errorf("%q is not a number of slots; give 1 or more", v)
	}
	return n, nil
}

func checkHostName(name string) error {
	if name == "" {
		return fmt.Errorf("a host without a name")
	}
	if strings.HasPrefix(name, "+") || strings.HasPrefix(name, "^") {
		return fmt.Errorf("%s: relative and excluded hosts are not supported; name the hosts to use", name)
	}
	for _, r := range name {
		if !strings.ContainsRune(".-_:%", r) && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') {
			return fmt.Errorf("%q is not a host name", name)
		}
	}
	return nil
}

// parseHostfile reads Open MPI's "host slots=N max-slots=M" or MPICH's
// "host:N", each with comments after #. A host without a number has as many
// slots as processors in Open MPI, one in MPICH.
func parseHostfile(f vftv1.Flavour, text string) ([]Host, error) {
	var hosts []Host
	for i, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(strings.ReplaceAll(line, "=", " = "))
		if len(words) == 0 {
			continue
		}
		h, err := parseHost(words[0])
		if err == nil {
			if _, _, counted := cutSlots(words[0]); !counted && f == vftv1.Flavour_FLAVOUR_OPENMPI {
				h.Slots = 0
			}
			err = h.attributes(f, words[1:])
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		hosts = append(hosts, h)
	}
	return hosts, nil
}

// attributes reads what follows a host's name, cut into words.
func (h *Host) attributes(f vftv1.Flavour, words []string) error {
	for len(words) > 0 {
		if len(words) < 3 || words[1] != "=" {
			return fmt.Errorf("%q after %s: write it as key=value, such as slots=2", words[0], h.Name)
		}
		key, value := strings.ToLower(strings.ReplaceAll(words[0], "_", "-")), strings.Trim(words[2], `"'`)
		words = words[3:]
		var err error
		switch {
		case f == vftv1.Flavour_FLAVOUR_MPICH:
			if key != "binding" && key != "ifname" && key != "user" && key != "maxprocs" {
				return fmt.Errorf("%s=%s is not for MPICH; write the slots as %s:N", key, value, h.Name)
			}
		case key == "slots" || key == "cpus" || key == "count":
			h.Slots, err = slotCount(value)
		case key == "max-slots" || key == "cpus-max" || key == "max-cpus" || key == "count-max" || key == "max-count":
			h.MaxSlots, err = slotCount(value)
		case key == "username" || key == "user-name" || key == "port" || key == "boards" || key == "sockets" || key == "cores" || key == "sockets-per-board" || key == "cores-per-socket":
		default:
			return fmt.Errorf("unknown key %s; those for hosts are slots and max-slots", key)
		}
		if err != nil {
			return err
		}
	}
	if h.MaxSlots > 0 && h.Slots > h.MaxSlots {
		return fmt.Errorf("%s has slots=%d above max-slots=%d", h.Name, h.Slots, h.MaxSlots)
	}
	if h.Slots == 0 {
		h.Slots = h.MaxSlots // Open MPI: max-slots alone is both
	}
	return nil
}
