package libtest

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"
)

// sabotage is a way to break the SDK: in the source file, find becomes instead. Nothing of this is in the product; it is put together at build time.
type sabotage struct {
	name          string
	file          string // in the folder of package upgrade
	find, instead string
	seen          string // what a client must notice, as a regular expression
	hub           bool   // it is noticed by an app whose connections know each other
}

// firstWhole is code that finds the first whole message in value.
const firstWhole = "r.kept = value\n\t\tvar whole int\n\t\tif n, end, _ := (&wsFramer{}).Next(value); end {\n\t\t\twhole = n\n\t\t}\n\t\t"

var sabotages = []sabotage{
	{
		name: "drop a byte", file: "record.go", seen: ".",
		find: "b = appendField(b, tagKept, r.kept)", instead: "b = appendField(b, tagKept, r.kept[:max(0, len(r.kept)-1)])",
	},
	{
		name: "replay twice", file: "record.go", seen: `message \d+ was answered where \d+ was due`,
		find: "r.kept = value", instead: firstWhole + "r.kept = append(append([]byte(nil), value[:whole]...), value...)",
	},
	{
		name: "swallow a frame", file: "record.go", seen: `message \d+ was answered where \d+ was due|a pong to ping \d+ before`,
		find: "r.kept = value", instead: firstWhole + "r.kept = value[whole:]",
	},
	{
		name: "close early", file: "handoff.go", seen: `EOF|reset|broken pipe`,
		find: "func (c *conn) sealLocked() {", instead: "func (c *conn) sealLocked() {\n\tc.closeLocked(ReasonClosed)",
	},
	{
		name: "skip the barrier", file: "give.go", seen: `came message \d+ where \d+ was due`, hub: true,
		find: "own.Mode == string(Barrier) || peer.Mode == string(Barrier)", instead: "false",
	},
}

// build makes the app with a broken SDK.
func (s sabotage) build(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", s.file))
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(source, []byte(s.find)); n != 1 {
		t.Fatalf("%s has %q %d times, not once: this sabotage is to be adapted to the source", s.file, s.find, n)
	}
	broken := filepath.Join(t.TempDir(), s.file)
	if err := os.WriteFile(broken, bytes.Replace(source, []byte(s.find), []byte(s.instead), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{path: broken}})
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(t.TempDir(), "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	app, err := build("sabotaged", false, "-overlay", list)
	if err != nil {
		t.Fatal(err)
	}
	return app
}

// witness is the story that sabotage has to show in.
func (s sabotage) witness(app string) story {
	w := meeting(app, 6)
	if !s.hub {
		torn := hostile{largest: 20_000, cut: 3000, ahead: 16}
		w = story{
			releases: func(int) release { return release{app: app, library: "gorilla", mode: "rolling"} },
			clients:  []guest{torn, torn, torn, torn, torn, torn}, messages: 4000, handoffs: 16,
			may: []string{"closed"}, // what the giver sees of one that closes early; a client must see it, too
		}
	}
	w.seed = *seedFlag
	return w
}

// TestSabotage_IsDetected proves the driver: with a broken SDK a client notices, and without one nobody does.
func TestSabotage_IsDetected(t *testing.T) {
	for _, s := range sabotages {
		t.Run(s.name, func(t *testing.T) {
			w := s.witness(s.build(t))
			w.patience = 20 * time.Second
			x, err := w.run(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			if len(x.problems) != 1 {
				t.Fatalf("nobody has noticed in %d messages and %d handoffs, seed %d", x.tally.count(), x.given.handoffs, w.seed)
			}
			if !regexp.MustCompile(`^client .*(` + s.seen + `)`).MatchString(x.problems[0]) {
				t.Errorf("noticed, but not by a client and for this reason: %s", x.problems[0])
			}
			t.Logf("after %d messages and %d handoffs: %.200s", x.tally.count(), x.given.handoffs, x.problems[0])
		})
	}
	for _, hub := range []bool{false, true} {
		sabotage{hub: hub}.witness(app(t)).tell(t)
	}
}
