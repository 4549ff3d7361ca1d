//go:build browser

package report

import (
	"encoding/json"
	"fmt"
	"html"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// measure is put into a copy of the page and tells what a browser made of it.
const measure = `<script>
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(d => { d.open = true });
  const box = e => e.getBoundingClientRect();
  const texts = [...document.querySelectorAll("svg text")];
  parent.postMessage({
    width: innerWidth, content: document.documentElement.scrollWidth,
    pictures: [...document.querySelectorAll("svg")].map(s => ({
      name: s.getAttribute("aria-label"), width: box(s).width, height: box(s).height,
      shapes: s.querySelectorAll("rect,path,circle").length,
    })),
    smallest: Math.min(...texts.map(t => box(t).height)),
    outside: texts.filter(t => {
      const s = box(t.ownerSVGElement), b = box(t);
      return b.left < s.left - 1 || b.right > s.right + 1 || b.top < s.top - 1 || b.bottom > s.bottom + 1;
    }).map(t => t.textContent),
    headings: [...document.querySelectorAll("h1,h2")].filter(h => box(h).height > 0).map(h => h.textContent),
    rows: document.querySelectorAll("tbody tr").length,
  }, "*");
});
</script>`

type seen struct {
	Width, Content float64
	Pictures       []struct {
		Name          string
		Width, Height float64
		Shapes        int
	}
	Smallest float64
	Outside  []string
	Headings []string
	Rows     int
}

// TestInBrowser has Chromium show the report as wide as a phone and as a
// screen, and measures what is to be seen.
func TestInBrowser(t *testing.T) {
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("chromium is missing: apt-get install chromium, or `make test-browser`")
	}
	dir := t.TempDir()
	sample(t, dir)
	r, err := Build(t.Context(), dir)
	require.NoError(t, err)
	page, err := os.ReadFile(r.Page)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "measured.html"), []byte(strings.Replace(string(page), "</body>", measure+"</body>", 1)), 0o600))
	// A frame can be narrower than a window.
	frames := ""
	for _, w := range []int{360, 1200} {
		frames += fmt.Sprintf(`<iframe src="measured.html" width="%d" height="800"></iframe>`, w)
	}
	shell := `<!doctype html><script>
const got = [];
addEventListener("message", e => { got.push(e.data); document.title = got.length; document.getElementById("got").textContent = JSON.stringify(got) });
</script><pre id="got"></pre>` + frames
	shellFile := filepath.Join(dir, "shell.html")
	require.NoError(t, os.WriteFile(shellFile, []byte(shell), 0o600))
	cmd := exec.CommandContext(t.Context(), chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
		"--user-data-dir="+filepath.Join(dir, "profile"), "--window-size=1400,1800", "--virtual-time-budget=10000", "--dump-dom", "file://"+shellFile)
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.Output()
	require.NoError(t, err)
	m := regexp.MustCompile(`(?s)<pre id="got">(.*?)</pre>`).FindSubmatch(out)
	require.NotNil(t, m, "%s", out)
	var got []seen
	require.NoError(t, json.Unmarshal([]byte(html.UnescapeString(string(m[1]))), &got))
	require.Len(t, got, 2)
	for _, s := range got {
		t.Run(fmt.Sprintf("%.0f wide", s.Width), func(t *testing.T) {
			assert.LessOrEqual(t, s.Content, s.Width, "nobody has to scroll sideways")
			assert.Equal(t, []string{"vft: measurements", "Faults & <checkpoints>"}, s.Headings)
			assert.Equal(t, 5, s.Rows)
			assert.Greater(t, len(s.Pictures), 8)
			for _, p := range s.Pictures {
				assert.Greater(t, p.Width, 0.8*min(s.Width, 700), p.Name)
				assert.Greater(t, p.Height, 20.0, p.Name)
				assert.Greater(t, p.Shapes, 1, p.Name)
			}
			assert.GreaterOrEqual(t, s.Smallest, 8.0, "text in pictures can be read")
			assert.Empty(t, s.Outside, "no text is cut off")
		})
	}
}
