package wrapper

import (
	"bytes"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// What is shown, across restarts of a program that says the same again, is
// what it said, each byte once; and one that says something else is told.
func TestOutputIsOneAccount(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		said := []byte(rapid.StringN(0, 300, 300).Draw(t, "said"))
		var got bytes.Buffer
		o := newOutStream("stdout", dir, func(p []byte) error { got.Write(p); return nil }, func(kind, text string, _ map[string]int64) {
			t.Fatalf("%s: %s", kind, text)
		})
		o.shown.segment = 16
		defer o.close()
		acked := int64(0) // the lowest offset a restart can go back to
		for i := range rapid.IntRange(0, 4).Draw(t, "restarts") + 1 {
			from := max(o.begin(uint64(i+1)), acked)
			end := int64(len(said))
			if end > from {
				end = rapid.Int64Range(from, end).Draw(t, "until")
			}
			for from < end {
				n := rapid.Int64Range(1, end-from).Draw(t, "chunk")
				back := rapid.Int64Range(0, min(3, from-acked)).Draw(t, "overlap")
				if err := o.take(from-back, said[from-back:from+n]); err != nil {
					t.Fatal(err)
				}
				from += n
			}
			if rapid.Bool().Draw(t, "checkpoint") {
				acked = o.position()
				if rapid.Bool().Draw(t, "trim") {
					o.trim(acked)
				}
			}
		}
		from := max(o.begin(99), acked)
		if err := o.take(from, said[from:]); err != nil {
			t.Fatal(err)
		}
		if !o.finish(int64(len(said))) || !bytes.Equal(got.Bytes(), said) {
			t.Fatalf("shown %q, said %q", got.Bytes(), said)
		}
	})
}

func TestOutputNotices(t *testing.T) {
	tests := []struct {
		name string
		do   func(*outStream) error
		want string
		says string
	}{
		{"differs in the middle", func(o *outStream) error {
			o.begin(2)
			return o.take(0, []byte("hexlo more"))
		}, "hello worldxlo more", "differs from what was shown at byte 2"},
		{"differs only once", func(o *outStream) error {
			o.begin(2)
			if err := o.take(0, []byte("hexlo")); err != nil {
				return err
			}
			return o.take(5, []byte(" moon"))
		}, "hello worldxlo moon", "differs from what was shown at byte 2"},
		{"gap", func(o *outStream) error {
			o.begin(1)
			return o.take(20, []byte("late"))
		}, "hello worldlate", "bytes 11 to 19 of stdout were lost"},
		{"replay begins in the middle", func(o *outStream) error {
			o.begin(2)
			return o.take(6, []byte("world!"))
		}, "hello world!", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got bytes.Buffer
			var notices []string
			o := newOutStream("stdout", t.TempDir(), func(p []byte) error { got.Write(p); return nil },
				func(_, text string, _ map[string]int64) { notices = append(notices, text) })
			defer o.close()
			o.begin(1)
			if err := o.take(0, []byte("hello world")); err != nil {
				t.Fatal(err)
			}
			if err := tt.do(o); err != nil {
				t.Fatal(err)
			}
			if got.String() != tt.want {
				t.Errorf("shown %q, want %q", got.String(), tt.want)
			}
			if all := strings.Join(notices, "|"); (tt.says == "") != (all == "") || !strings.Contains(all, tt.says) || len(notices) > 1 {
				t.Errorf("notices %q, want one with %q", notices, tt.says)
			}
		})
	}
}

// Without room for a copy of what was shown, output still comes.
func TestOutputWithoutSpool(t *testing.T) {
	var got bytes.Buffer
	var notices []string
	o := newOutStream("stdout", "/does/not/exist", func(p []byte) error { got.Write(p); return nil },
		func(_, text string, _ map[string]int64) { notices = append(notices, text) })
	o.begin(1)
	for i, s := range []string{"one ", "two ", "three"} {
		if err := o.take(int64(4*i), []byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	if from := o.begin(2); from > 13 {
		t.Errorf("asks from %d on", from)
	}
	if err := o.take(8, []byte("three four")); err != nil {
		t.Fatal(err)
	}
	if got.String() != "one two three four" || len(notices) != 1 {
		t.Errorf("shown %q, notices %q", got.String(), notices)
	}
}
