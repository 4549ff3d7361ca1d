package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func TestPrintVerdicts(t *testing.T) {
	verdicts := []*vftv1.Verdict{
		{Guest: 0, Level: "local", Node: "n1", Asked: true, Bytes: 4096},
		{Guest: 0, Level: "local", Node: "n2", Asked: true, Bytes: 4096, Repaired: 2048},
	}
	var b bytes.Buffer
	require.NoError(t, printVerdicts(&b, verdicts))
	assert.Contains(t, b.String(), "good")
	assert.Contains(t, b.String(), "2.0 KiB   -     repaired")
	assert.NoError(t, faulty(3, verdicts))

	verdicts = append(verdicts,
		&vftv1.Verdict{Guest: 1, Level: "local", Node: "n1", Asked: true, Fault: "page 7 of block pc.ram"},
		&vftv1.Verdict{Guest: 1, Level: "local", Node: "n2", Fault: "no answer"})
	b.Reset()
	require.NoError(t, printVerdicts(&b, verdicts))
	assert.Contains(t, b.String(), "damaged: page 7 of block pc.ram")
	assert.Contains(t, b.String(), "not known: no answer")
	assert.ErrorContains(t, faulty(3, verdicts), "2 of 4 checks")

	b.Reset()
	require.NoError(t, printVerdicts(&b, []*vftv1.Verdict{
		{Level: levelBoot, Node: "n1", Asked: true, Bytes: 4096, Took: 1_500_000_000},
		{Level: levelBoot, Node: "n2", Asked: true, Fault: "device x"},
		{Level: levelBoot, Node: "n3", Fault: "no memory"},
	}))
	for _, want := range []string{"1.5s  loads", "does not load: device x", "not known: no memory"} {
		assert.Contains(t, b.String(), want)
	}
}

func TestPrintUsage(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, printUsage(&b, []*vftv1.StoreUsageResponse{
		{Node: "n1", Parts: 2, Packs: 1, StoredBytes: 3 << 20, RawBytes: 9 << 20, Jobs: []*vftv1.JobUsage{{Job: "bt", Parts: 2, Bytes: 5 << 20, Changed: 1 << 20}}},
		{Node: "n2"},
	}))
	for _, want := range []string{"n1", "n2", "3.0 MiB", "9.0 MiB", "bt", "5.0 MiB", "1.0 MiB"} {
		assert.Contains(t, b.String(), want)
	}
	b.Reset()
	require.NoError(t, printUsage(&b, nil))
	assert.Empty(t, b.String())
}

func TestPrintCollections(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, printCollections(&b, []*vftv1.Collection{{Node: "n1", Freed: 2 << 30}, {Node: "n2", Level: "dir:/x", Fault: "not mounted"}}))
	for _, want := range []string{"its own", "2.0 GiB", "dir:/x", "not mounted"} {
		assert.Contains(t, b.String(), want)
	}
}
