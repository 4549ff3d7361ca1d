package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const hpccInput = `HPLinpack benchmark input file
8            device out (6=stdout,7=stderr,file)
1            # of problems sizes (N)
1000         Ns
1            # of NBs
80           NBs
2            Ps
0            Number of additional problem sizes for PTRANS
1200 10000   values of N
`

func TestScaleHPCC(t *testing.T) {
	got, err := scaleHPCC(hpccInput, 2400)
	require.NoError(t, err)
	assert.Equal(t, strings.Replace(hpccInput, "1000         Ns", "2400         Ns", 1), got, "only the size may change")

	_, err = scaleHPCC("1 # of problems sizes (N)\n80 NBs\n", 2400)
	assert.ErrorContains(t, err, "no line of problem sizes")
}

// hpccOutput is what matters of hpcc's output file: HPL's table and the summary.
const hpccOutput = `- The following scaled residual check will be computed:
      ||Ax-b||_oo / ( eps * ( || x ||_oo * || A ||_oo + || b ||_oo ) * N )
HPLinpack 2.0  --  High-Performance Linpack benchmark  --   September 10, 2008
T/V                N    NB     P     Q               Time                 Gflops
WR11C2R4        1000    80     2     2               0.07              9.451e+00
--------------------------------------------------------------------------------
||Ax-b||_oo/(eps*(||A||_oo*||x||_oo+||b||_oo)*N)=        0.0067329 ...... PASSED
================================================================================
Begin of Summary section.
VersionMajor=1
Success=1
HPL_Tflops=0.00945
PTRANS_residual=0
MPIRandomAccess_ErrorsFraction=0
MPIFFT_maxErr=1.31434e-15
End of Summary section.
`

func TestCheckHPCC(t *testing.T) {
	for name, test := range map[string]struct {
		old, text string // replaced in a good file
		want      string // "": good
	}{
		"good":                    {},
		"residual failed":         {"...... PASSED", "...... FAILED", "residual check did not pass"},
		"residual missing":        {"||Ax-b||_oo/(", "Ax-b_oo/(", "residual check is not in the output"},
		"a second residual fails": {"====\n", "====\n||Ax-b||_oo/(...)=  1e9 ...... FAILED\n", "did not pass"},
		"no success":              {"Success=1", "Success=0", `Success="0"`},
		"no verdict":              {"Success=1\n", "", `Success=""`},
		"cut off":                 {"PTRANS_residual=0\nMPIRandomAccess_ErrorsFraction=0\nMPIFFT_maxErr=1.31434e-15\nEnd of Summary section.\n", "", "PTRANS_residual"},
		"PTRANS wrong":            {"PTRANS_residual=0", "PTRANS_residual=17", "PTRANS residual is 17"},
		"PTRANS not run":          {"PTRANS_residual=0", "PTRANS_residual=-1", "PTRANS residual is -1"},
		"errors in RandomAccess":  {"ErrorsFraction=0", "ErrorsFraction=0.02", "RandomAccess errors is 0.02"},
		"FFT wrong":               {"1.31434e-15", "0.5", "FFT error is 0.5"},
		"FFT not a number":        {"1.31434e-15", "nan", "FFT error is NaN"},
		"FFT garbled":             {"1.31434e-15", "x", "MPIFFT_maxErr"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "hpccoutf.txt")
			text := strings.Replace(hpccOutput, test.old, test.text, 1)
			require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
			shown, err := checkHPCC(path)
			if test.want != "" {
				require.NotEqual(t, hpccOutput, text)
				assert.ErrorContains(t, err, test.want)
				return
			}
			require.NoError(t, err)
			assert.Contains(t, shown[0], "PASSED")
			assert.Contains(t, shown, "hpcc summary: Success=1")
			assert.Len(t, shown, 5, "each check is shown")
		})
	}
	_, err := checkHPCC(filepath.Join(t.TempDir(), "hpccoutf.txt"))
	require.ErrorIs(t, err, os.ErrNotExist)
	assert.ErrorContains(t, err, "did not come back")
}

func heatOutput(iterations ...int) string {
	text := ""
	for _, i := range iterations {
		text += fmt.Sprintf("iteration %d change %.17g\n", i, 1/float64(i))
	}
	return text
}

func TestCheckHeat(t *testing.T) {
	const end = "heat: 4 ranks, 64 x 64, 45 iterations\nVerification SUCCESSFUL\n"
	for name, test := range map[string]struct{ output, want string }{
		"good":             {heatOutput(10, 20, 30, 40) + end, ""},
		"one line doubled": {heatOutput(10, 20, 20, 30, 40) + end, "doubled"},
		"a stretch again":  {heatOutput(10, 20, 30, 20, 30, 40) + end, "doubled"},
		"a line lost":      {heatOutput(10, 20, 40) + end, "lost"},
		"the first lost":   {heatOutput(20, 30, 40) + end, "lost"},
		"the last lost":    {heatOutput(10, 20, 30) + end, "lost"},
		"all lost":         {end, "lost"},
		"no verdict":       {heatOutput(10, 20, 30, 40), `says ""`},
		"failed":           {heatOutput(10, 20, 30, 40) + strings.Replace(end, "SUCCESSFUL", "FAILED", 1), "FAILED"},
		"half a verdict":   {heatOutput(10, 20, 30, 40) + strings.Replace(end, "SUCCESSFUL", "SUCC", 1), "SUCC"},
		"two verdicts":     {heatOutput(10, 20, 30, 40) + end + "Verification SUCCESSFUL\n", "doubled"},
	} {
		t.Run(name, func(t *testing.T) {
			shown, err := checkHeat(test.output)
			if test.want != "" {
				assert.ErrorContains(t, err, test.want)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, []string{"Verification SUCCESSFUL"}, shown)
		})
	}
}

func npbOutput(steps ...int) string {
	text := "\n Class          W\n Iterations     200\n"
	for _, i := range steps {
		text += fmt.Sprintf(" Time step %4d\n", i)
	}
	return text
}

func TestCheckNPB(t *testing.T) {
	const end = "\n Verification SUCCESSFUL, tolerance 1e-08\n\n BT-MZ benchmark completed\n Verification    = SUCCESSFUL\n"
	steps := []int{1, 20, 40, 60, 80, 100, 120, 140, 160, 180, 200}
	for name, test := range map[string]struct{ output, want string }{
		"good":              {npbOutput(steps...) + end, ""},
		"a stretch again":   {npbOutput(1, 20, 40, 20, 40) + end, "doubled"},
		"the first again":   {npbOutput(1, 1, 20) + end, "doubled"},
		"a step lost":       {npbOutput(1, 20, 60) + end, "lost"},
		"the first lost":    {npbOutput(steps[1:]...) + end, "lost"},
		"the last lost":     {npbOutput(steps[:10]...) + end, "lost"},
		"all lost":          {end, "lost"},
		"no verdict":        {npbOutput(steps...), "no verdict"},
		"summary only":      {npbOutput(steps...) + " Verification    = SUCCESSFUL\n", "no verdict"},
		"failed":            {npbOutput(steps...) + strings.Replace(end, "SUCCESSFUL", "UNSUCCESSFUL", 1), "UNSUCCESSFUL"},
		"nothing to verify": {npbOutput(steps...) + strings.Replace(end, "SUCCESSFUL", "not performed", 1), "not performed"},
		"half a verdict":    {npbOutput(steps...) + " Verification SUCC", "SUCC"},
		"two verdicts":      {npbOutput(steps...) + end + end, "doubled"},
	} {
		t.Run(name, func(t *testing.T) {
			shown, err := checkNPB(test.output)
			if test.want != "" {
				assert.ErrorContains(t, err, test.want)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, []string{"Verification SUCCESSFUL, tolerance 1e-08"}, shown)
		})
	}
}

func TestPrograms(t *testing.T) {
	assert.Equal(t, []string{"heat", "64", "20", "1"}, Heat("heat", 64, 20).Argv, "a short run reports each iteration")
	assert.Equal(t, []string{"heat", "64", "400", "10"}, Heat("heat", 64, 400).Argv)
	assert.Equal(t, []string{"/b/bt-mz", "W"}, NPB("/b", "bt", openMPI, "W").Argv)
	assert.Equal(t, []string{"/b/sp-mz.mpich", "S"}, NPB("/b", "sp", mpich, "S").Argv)
	assert.Subset(t, NPB("/b", "bt", openMPI, "W").Options, []string{"-x", "OMP_NUM_THREADS=1"})
	assert.Subset(t, NPB("/b", "bt", mpich, "W").Options, []string{"-genv", "OMP_NUM_THREADS", "1"})
	app := HPCC(500)
	_, err := app.Check(t.TempDir(), "")
	assert.ErrorContains(t, err, "hpccoutf.txt")
}
