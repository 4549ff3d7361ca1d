package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func TestPrintScores(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, printScores(&out, nil))
	assert.Contains(t, out.String(), "no rule has raised an alarm so far")
	out.Reset()
	require.NoError(t, printScores(&out, []*vftv1.RuleStanding{
		{
			Score: &vftv1.RuleScore{Rule: "disk", Confidence: 0.5, Episodes: 8, Hits: 3, FalseAlarms: 3, Missed: 1},
			Open:  2, Precision: 0.5, Weight: 1, Lead: int64(90 * time.Second),
		},
		{Score: &vftv1.RuleScore{Rule: "fan", Missed: 4}, Weight: 1},
	}))
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Len(t, lines, 3)
	assert.Equal(t, []string{"RULE", "ALARMS", "RIGHT", "FALSE", "OPEN", "MISSED", "CONFIDENCE", "WEIGHT", "PRECISION", "RECALL", "LEAD"}, strings.Fields(lines[0]))
	assert.Equal(t, []string{"disk", "8", "3", "3", "2", "1", "0.50", "1.00", "0.50", "0.75", "2m"}, strings.Fields(lines[1]))
	assert.Equal(t, []string{"fan", "0", "0", "0", "0", "4", "-", "1.00", "-", "0.00", "-"}, strings.Fields(lines[2]))
}

func TestWhyTellsTheWeight(t *testing.T) {
	ev := &vftv1.Event{
		Kind: "decision", Text: "node n1 expects to fail",
		Figures: map[string]int64{"confidence_ppm": 300000, "own_confidence_ppm": 900000, "weight_ppm": 333333},
		Labels:  map[string]string{"action": "ignore", "policy": "default", "scores": "disk has weight 0.33, 0 of 8 alarms were right"},
	}
	var out bytes.Buffer
	require.NoError(t, printWhy(&out, []*vftv1.Event{ev}, 0))
	assert.Contains(t, out.String(), "confidence 0.30 (its own 0.90; disk has weight 0.33, 0 of 8 alarms were right), lead")
}
