package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// printProto writes a message as indented JSON, with every field there.
func printProto(w io.Writer, m proto.Message) error {
	data, err := protojson.MarshalOptions{Multiline: true, EmitUnpopulated: true, UseProtoNames: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("encoding JSON: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s\n", data)
	return err
}

// printProtos writes messages as one JSON array.
func printProtos[M proto.Message](w io.Writer, ms []M) error {
	list := make([]json.RawMessage, 0, len(ms))
	for _, m := range ms {
		data, err := protojson.MarshalOptions{EmitUnpopulated: true, UseProtoNames: true}.Marshal(m)
		if err != nil {
			return fmt.Errorf("encoding JSON: %w", err)
		}
		list = append(list, data)
	}
	return printJSON(w, list)
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encoding JSON: %w", err)
	}
	return nil
}

// table prints aligned columns.
func table(w io.Writer, head string, rows func(row func(cells ...any))) error {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, strings.ToUpper(head)) //nolint:errcheck // Flush reports it
	rows(func(cells ...any) {
		for i, c := range cells {
			if i > 0 {
				fmt.Fprint(tw, "\t") //nolint:errcheck // Flush reports it
			}
			fmt.Fprint(tw, c) //nolint:errcheck // Flush reports it
		}
		fmt.Fprintln(tw) //nolint:errcheck // Flush reports it
	})
	return tw.Flush()
}

// word turns an enum's value into a word: JOB_PHASE_RUNNING of JobPhase to running.
func word(e protoreflect.Enum) string {
	d := e.Descriptor()
	v := d.Values().ByNumber(e.Number())
	if v == nil {
		return fmt.Sprint(e.Number())
	}
	prefix := string(d.Values().Get(0).Name())
	prefix = strings.TrimSuffix(prefix, "UNSPECIFIED")
	w := strings.ToLower(strings.TrimPrefix(string(v.Name()), prefix))
	if w == "unspecified" {
		return "-"
	}
	return strings.ReplaceAll(w, "_", "-")
}

// ago says how long since a time in Unix nanoseconds.
func ago(now time.Time, ns int64) string {
	if ns == 0 {
		return "-"
	}
	return now.Sub(time.Unix(0, ns)).Round(time.Second).String()
}

// short rounds a duration in nanoseconds to what a person reads.
func short(ns int64) string {
	d := time.Duration(ns)
	switch {
	case d == 0:
		return "-"
	case d < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d < 10*time.Second:
		return d.Round(time.Millisecond).String()
	default:
		return d.Round(100 * time.Millisecond).String()
	}
}

// size prints bytes in binary units.
func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	div, exp := int64(unit), 0
	for n/div >= unit && exp < 4 {
		div *= unit
		exp++
	}
	return fmt.Sprintf("%.1f %ciB", float64(n)/float64(div), "KMGTP"[exp])
}

// printProtoLine writes a message as one line of JSON.
func printProtoLine(w io.Writer, m proto.Message) error {
	data, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("encoding JSON: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s\n", data)
	return err
}

// printLine writes a value as one line of JSON.
func printLine(w io.Writer, v any) error {
	if err := json.NewEncoder(w).Encode(v); err != nil {
		return fmt.Errorf("encoding JSON: %w", err)
	}
	return nil
}
