package wrapper

import (
	"slices"
	"strings"
	"testing"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func TestParseHostfile(t *testing.T) {
	tests := []struct {
		name    string
		flavour vftv1.Flavour
		text    string
		want    []Host
		err     string
	}{
		{"slots", ompi, "a slots=2\nb slots = 3 max_slots = 5 # x\n\n#c\n", []Host{{"a", 2, 0}, {"b", 3, 5}}, ""},
		{"processors", ompi, "a\nb.example.org cpus=4\n", []Host{{"a", 0, 0}, {"b.example.org", 4, 0}}, ""},
		{"only max-slots", ompi, "a max-slots=3", []Host{{"a", 3, 3}}, ""},
		{"user", ompi, "me@a slots=1 username=me", []Host{{"a", 1, 0}}, ""},
		{"colon in Open MPI", ompi, "a:3", []Host{{"a", 3, 0}}, ""},
		{"several times", ompi, "a\na\na slots=2", []Host{{"a", 0, 0}, {"a", 0, 0}, {"a", 2, 0}}, ""},
		{"mpich", mpich, "a:2\r\nb\n[fe80::1]:4\nfe80::2\n", []Host{{"a", 2, 0}, {"b", 1, 0}, {"fe80::1", 4, 0}, {"fe80::2", 1, 0}}, ""},
		{"mpich binding", mpich, "a:2 binding=user:1", []Host{{"a", 2, 0}}, ""},
		{"unknown key", ompi, "a slot=2", nil, "line 1: unknown key slot"},
		{"no value", ompi, "\na slots", nil, "line 2"},
		{"bad count", ompi, "a slots=two", nil, "not a number of slots"},
		{"above the maximum", ompi, "a slots=4 max-slots=2", nil, "above max-slots"},
		{"bad name", ompi, "a/b slots=4", nil, "not a host name"},
		{"relative", ompi, "+n0", nil, "not supported"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseHostfile(tt.flavour, tt.text)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("%v, %v; want %v", got, err, tt.want)
			}
		})
	}
}

func TestMergeHosts(t *testing.T) {
	got := mergeHosts([]Host{{"a", 0, 0}, {"b", 2, 0}, {"a", 0, 0}, {"b", 1, 4}})
	if want := []Host{{"a", 2, 0}, {"b", 3, 4}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func FuzzHostfile(f *testing.F) {
	f.Add(true, "a slots=2 max-slots=4\nb\n")
	f.Add(false, "a:2\n[::1]:3 binding=x\n# c")
	f.Fuzz(func(t *testing.T, open bool, text string) {
		flavour := mpich
		if open {
			flavour = ompi
		}
		hosts, err := parseHostfile(flavour, text)
		if err != nil {
			return
		}
		for _, h := range mergeHosts(hosts) {
			if h.Name == "" || h.Slots < 0 || h.Slots > maxRanks || strings.ContainsAny(h.Name, " \t\n,#=") {
				t.Fatalf("%+v from %q", h, text)
			}
		}
	})
}
