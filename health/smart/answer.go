package smart

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/mpirun-vft/vft/health"
)

// exitStatus is smartctl's exit status, a mask of bits (smartctl(8), EXIT
// STATUS). None of them says whether the JSON is good.
type exitStatus int

const (
	exitUsage    exitStatus = 1 << 0 // the command line was not understood
	exitOpen     exitStatus = 1 << 1 // could not be opened, or is asleep
	exitFailing  exitStatus = 1 << 3 // the disk says that it is failing
	exitPrefail  exitStatus = 1 << 4 // a prefail attribute is at its threshold
	exitErrorLog exitStatus = 1 << 6 // there are errors in its log
	exitSelfTest exitStatus = 1 << 7 // a self-test failed
)

func (e exitStatus) has(bit exitStatus) bool { return e&bit != 0 }

// answer is what we use of smartctl's JSON. Numbers of NVMe have 128 bits and
// may be texts, hence [number].
type answer struct {
	Smartctl struct {
		Messages []struct {
			Text string `json:"string"`
		} `json:"messages"`
	} `json:"smartctl"`
	Model     string `json:"model_name"`
	SCSIModel string `json:"scsi_model_name"`
	Serial    string `json:"serial_number"`
	Status    *struct {
		Passed *bool `json:"passed"`
		SCSI   struct {
			Text string `json:"ie_string"`
		} `json:"scsi"`
	} `json:"smart_status"`
	Temperature struct {
		Current number `json:"current"`
	} `json:"temperature"`
	ATA struct {
		Table []attribute `json:"table"`
	} `json:"ata_smart_attributes"`
	NVMe *struct {
		CriticalWarning number `json:"critical_warning"`
		Spare           number `json:"available_spare"`
		SpareThreshold  number `json:"available_spare_threshold"`
		PercentageUsed  number `json:"percentage_used"`
		MediaErrors     number `json:"media_errors"`
	} `json:"nvme_smart_health_information_log"`
	GrownDefects number `json:"scsi_grown_defect_list"`
	SCSIUsed     number `json:"scsi_percentage_used_endurance_indicator"`
	SCSIErrors   map[string]struct {
		Uncorrected number `json:"total_uncorrected_errors"`
	} `json:"scsi_error_counter_log"`
}

// attribute is a line of ATA's table.
type attribute struct {
	ID  int `json:"id"`
	Raw struct {
		Value number `json:"value"`
		Text  string `json:"string"`
	} `json:"raw"`
}

// number is a JSON number, or one as a text, or nothing.
type number struct {
	v  float64
	ok bool
}

// UnmarshalJSON implements json.Unmarshaler. What is no number is nothing: one
// strange field does not make the rest useless.
func (n *number) UnmarshalJSON(data []byte) error {
	v, err := strconv.ParseFloat(strings.Trim(string(data), `"`), 64)
	*n = number{}
	if err == nil && !math.IsInf(v, 0) && !math.IsNaN(v) {
		*n = number{v, true}
	}
	return nil
}

func decode(data []byte, into any) error {
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("smartctl printed no JSON that we know (version 7.0 is needed): %w", err)
	}
	return nil
}

// says looks for words in smartctl's messages.
func (a *answer) says(words string) bool {
	for _, m := range a.Smartctl.Messages {
		if strings.Contains(strings.ToLower(m.Text), words) {
			return true
		}
	}
	return false
}

func (a *answer) complaint() string {
	if len(a.Smartctl.Messages) == 0 {
		return ""
	}
	return a.Smartctl.Messages[0].Text
}

// readings turns the answer of a disk into readings.
func (a *answer) readings(subject string, status exitStatus) []health.Reading {
	r := &results{subject: subject, model: a.Model}
	if r.model == "" {
		r.model = a.SCSIModel
	}
	a.judgement(r, status)
	if len(a.ATA.Table) > 0 {
		r.text("prefail", float64(rank(status.has(exitPrefail))), "")
	}
	r.text("error_log", float64(rank(status.has(exitErrorLog))), "")
	r.text("selftest_failed", float64(rank(status.has(exitSelfTest))), "")
	if t := a.Temperature.Current; t.ok && t.v > 0 { // 0: a disk without a sensor
		r.gauge("temperature", t, "°C")
	}
	a.ata(r)
	a.nvme(r)
	a.scsi(r)
	return r.list
}

// judgement is what the disk thinks of itself. An NVMe drive's is its critical
// warning, which says more.
func (a *answer) judgement(r *results, status exitStatus) {
	switch {
	case a.NVMe != nil:
	case a.Status != nil && a.Status.Passed != nil:
		r.text("failing", float64(rank(!*a.Status.Passed || status.has(exitFailing))), a.Status.SCSI.Text)
	case status.has(exitFailing):
		r.text("failing", 1, "")
	}
}

// ata picks the attributes that told failed from healthy drives in the field.
func (a *answer) ata(r *results) {
	for i := range a.ATA.Table {
		raw := a.ATA.Table[i].raw()
		switch a.ATA.Table[i].ID {
		case 5:
			r.counter("reallocated", raw, "sectors")
		case 187:
			r.counter("reported_uncorrectable", raw, "errors")
		case 188:
			r.counter("command_timeouts", raw, "timeouts")
		case 197:
			r.gauge("pending", raw, "sectors") // falls when sectors are reallocated
		case 198:
			r.counter("offline_uncorrectable", raw, "sectors")
		case 199:
			r.counter("crc_errors", raw, "errors")
		}
	}
}

// raw is the count in an attribute's raw value. Vendors pack more than a count
// into its 48 bits; smartctl's text has the count first.
func (at *attribute) raw() number {
	digits := at.Raw.Text
	if end := strings.IndexFunc(digits, func(c rune) bool { return c < '0' || c > '9' }); end >= 0 {
		digits = digits[:end]
	}
	if v, err := strconv.ParseUint(digits, 10, 64); err == nil {
		return number{float64(v), true}
	}
	return at.Raw.Value
}

func (a *answer) nvme(r *results) {
	if a.NVMe == nil {
		return
	}
	if w := a.NVMe.CriticalWarning; w.ok {
		r.text("critical_warning", w.v, warnings(int(w.v)))
	}
	r.counter("media_errors", a.NVMe.MediaErrors, "errors")
	r.gauge("percentage_used", a.NVMe.PercentageUsed, "%")
	r.gauge("available_spare", a.NVMe.Spare, "%")
	r.gauge("available_spare_threshold", a.NVMe.SpareThreshold, "%")
}

// warnings names the bits of NVMe's critical warning.
func warnings(bits int) string {
	var set []string
	for i, what := range []string{
		"spare below threshold", "temperature", "reliability degraded",
		"read only", "backup of volatile memory failed", "persistent memory unreliable",
	} {
		if bits&(1<<i) != 0 {
			set = append(set, what)
		}
	}
	return strings.Join(set, ", ")
}

func (a *answer) scsi(r *results) {
	r.counter("grown_defects", a.GrownDefects, "sectors")
	r.gauge("percentage_used", a.SCSIUsed, "%")
	if len(a.SCSIErrors) == 0 {
		return
	}
	var sum number
	for _, direction := range a.SCSIErrors {
		if direction.Uncorrected.ok {
			sum.v, sum.ok = sum.v+direction.Uncorrected.v, true
		}
	}
	r.counter("uncorrected_errors", sum, "errors")
}

// results collects the readings of one disk.
type results struct {
	subject, model string
	list           []health.Reading
}

func (r *results) text(metric string, v float64, text string) {
	if text == "" {
		text = r.model
	}
	r.list = append(r.list, health.Reading{Metric: metric, Subject: r.subject, Value: v, Text: text})
}

func (r *results) add(metric string, n number, unit string, counter bool) {
	if n.ok {
		r.list = append(r.list, health.Reading{Metric: metric, Subject: r.subject, Value: n.v, Unit: unit, Counter: counter, Text: r.model})
	}
}

func (r *results) counter(metric string, n number, unit string) { r.add(metric, n, unit, true) }
func (r *results) gauge(metric string, n number, unit string)   { r.add(metric, n, unit, false) }
