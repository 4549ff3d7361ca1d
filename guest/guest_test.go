package guest

import (
	"strings"
	"testing"
)

func TestAddresses(t *testing.T) {
	seen := map[string]bool{}
	for i := range MaxGuests {
		a := Addr(i).String()
		if seen[a] {
			t.Fatalf("guest %d has the address of another, %s", i, a)
		}
		seen[a] = true
	}
	for i, want := range map[int][2]string{
		0:     {"10.77.1.1", "52:54:00:77:00:00"},
		1:     {"10.77.1.2", "52:54:00:77:00:01"},
		249:   {"10.77.1.250", "52:54:00:77:00:f9"},
		250:   {"10.77.2.1", "52:54:00:77:00:fa"},
		62499: {"10.77.250.250", "52:54:00:77:f4:23"},
	} {
		if got := [2]string{Addr(i).String(), MAC(i).String()}; got != want {
			t.Errorf("guest %d: %v, want %v", i, got, want)
		}
	}
}

func TestKernelArgsRoundTrip(t *testing.T) {
	for _, c := range []KernelConfig{
		{Index: 0, Size: 1},
		{Index: 3, Size: 4, Net: "10.99.0.0/16", MTU: 1500, HostPrefix: "node", Gateway: "10.99.0.1", DNS: "10.99.0.1", Console: true},
	} {
		got, err := ParseKernelArgs("BOOT_IMAGE=x " + KernelArgs(c) + "\n")
		if err != nil {
			t.Fatal(err)
		}
		if want := c.withDefaults(); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	if q := KernelArgs(KernelConfig{Size: 1}); !strings.Contains(q, "quiet") || strings.Contains(q, "console=") {
		t.Errorf("a quiet boot: %s", q)
	}
}

func TestValidate(t *testing.T) {
	for name, c := range map[string]KernelConfig{
		"no guests":     {},
		"index":         {Index: 2, Size: 2},
		"too many":      {Size: MaxGuests + 1},
		"small network": {Size: 1, Net: "10.0.0.0/24"},
		"IPv6":          {Size: 1, Net: "fd00::/16"},
		"no network":    {Size: 1, Net: "x"},
		"MTU":           {Size: 1, MTU: 70000},
		"name":          {Size: 1, HostPrefix: "a b"},
		"gateway":       {Size: 1, Gateway: "gw"},
	} {
		if c.Validate() == nil {
			t.Errorf("%s: %+v is accepted", name, c)
		}
	}
	if _, err := ParseKernelArgs("vft.index=x vft.size=1"); err == nil {
		t.Error("an index that is no number is accepted")
	}
}

func TestHosts(t *testing.T) {
	got, err := Hosts(KernelConfig{Size: 2})
	want := "127.0.0.1 localhost\n::1 localhost\n10.77.1.1 guest0\n10.77.1.2 guest1\n"
	if err != nil || got != want {
		t.Errorf("got %q, %v", got, err)
	}
}
