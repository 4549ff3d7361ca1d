package hwevent

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	_ "modernc.org/sqlite" // the driver called "sqlite"

	"github.com/mpirun-vft/vft/health/host"
)

// rasdaemonFile is where rasdaemon keeps events.
const rasdaemonFile = "var/lib/rasdaemon/ras-mc_event.db"

// database follows rasdaemon's database. It is opened for reading only, and
// only when its file has changed.
type database struct {
	host  *host.Host
	seen  [2]stamp // of the file and its write-ahead log
	last  map[string]int64
	since time.Time // the machine's start: older events are another boot's
}

// stamp tells whether a file has changed.
type stamp struct {
	size int64
	when time.Time
}

func stampOf(path string) stamp {
	st, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	return stamp{st.Size(), st.ModTime()}
}

// table is how events of one table are read.
type table struct {
	name, columns string
	count         func(c *counts, v []any)
}

// tables are those that we know, in the words of rasdaemon's schema; the first
// two columns of every query are id and timestamp.
var tables = []table{
	{"mc_event", "err_count, err_type, label, mc, address", func(c *counts, v []any) {
		label := text(v[2])
		if label == "" {
			label = "mc" + text(v[3])
		}
		switch n := max(1, float64(integer(v[0]))); text(v[1]) {
		case "Corrected":
			c.memory(label, false, n, uint64(integer(v[4]))>>12)
		case "Uncorrected", "Fatal":
			c.memory(label, true, n, 0)
		}
	}},
	{"mce_record", "status, cpu, bank", func(c *counts, v []any) {
		c.machineCheck(uint64(integer(v[1])), uint64(integer(v[2])), uint64(integer(v[0])))
	}},
	{"aer_event", "err_type, dev_name, err_msg", func(c *counts, v []any) {
		metric := "corrected"
		if strings.HasPrefix(text(v[0]), "Uncorrected") {
			metric = "uncorrected"
		}
		c.add(metric, text(v[1]), 1, text(v[2]))
	}},
	{"extlog_event", "severity, error_count", func(c *counts, v []any) {
		// cper: 0 recoverable, 1 fatal, 2 corrected, 3 informational
		if s := integer(v[0]); s >= 0 && s <= 2 {
			c.firmware([]string{"recoverable", "fatal", "corrected"}[s])
		}
	}},
	{"memory_failure_event", "pfn, action_result", func(c *counts, v []any) {
		c.add("kernel_events", "memory_failure", 1, "page "+text(v[0])+": "+text(v[1]))
	}},
}

// maxRows bounds how many events of a table one run reads.
const maxRows = 5000

// read counts events that have come since the run before. found says whether
// there is a database at all.
func (d *database) read(ctx context.Context, c *counts) (found bool, err error) {
	path := d.host.Path(rasdaemonFile)
	now := [2]stamp{stampOf(path), stampOf(path + "-wal")}
	if now[0] == (stamp{}) {
		return false, nil
	}
	if now == d.seen {
		return true, nil
	}
	if d.last == nil {
		d.last = map[string]int64{}
		if up := d.host.Uptime(); up > 0 && d.host.Live() {
			d.since = time.Now().Add(-up)
		}
	}
	dsn := url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: "mode=ro&_pragma=busy_timeout(500)&_pragma=query_only(1)"}
	db, err := sql.Open("sqlite", dsn.String())
	if err != nil {
		return false, err
	}
	defer db.Close() //nolint:errcheck // only read
	db.SetMaxOpenConns(1)
	more := false
	for i := range tables {
		full, e := d.table(ctx, db, &tables[i], c)
		more, err = more || full, errors.Join(err, e)
	}
	if err != nil {
		return false, err
	}
	if !more {
		d.seen = now
	}
	return true, nil
}

// table counts a table's new events; full says that there may be more.
func (d *database) table(ctx context.Context, db *sql.DB, t *table, c *counts) (full bool, err error) {
	var n int
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?`, t.name).Scan(&n); err != nil {
		return false, err
	}
	if n == 0 {
		return false, nil
	}
	query := "SELECT id, timestamp, " + t.columns + " FROM " + t.name + " WHERE id > ? ORDER BY id LIMIT " + strconv.Itoa(maxRows) //nolint:gosec // names are constants
	rows, err := db.QueryContext(ctx, query, d.last[t.name])
	if err != nil {
		return false, err
	}
	defer rows.Close() //nolint:errcheck // Err tells
	values := make([]any, 3+strings.Count(t.columns, ","))
	into := make([]any, len(values))
	for i := range values {
		into[i] = &values[i]
	}
	seen := 0
	for rows.Next() {
		seen++
		if err := rows.Scan(into...); err != nil {
			return false, fmt.Errorf("table %s: %w", t.name, err)
		}
		d.last[t.name] = max(d.last[t.name], integer(values[0]))
		if when, err := time.Parse("2006-01-02 15:04:05 -0700", text(values[1])); err == nil && when.Before(d.since) {
			continue
		}
		t.count(c, values[2:])
	}
	return seen == maxRows, rows.Err()
}

// integer is a column's value as a number; 0 for what is none.
func integer(v any) int64 {
	switch v := v.(type) {
	case int64:
		return v
	case string:
		n, _ := strconv.ParseInt(v, 0, 64)
		return n
	}
	return 0
}

// text is a column's value as a text.
func text(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case []byte:
		return string(v)
	default:
		return fmt.Sprint(v)
	}
}
