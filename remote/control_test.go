package remote

import (
	"errors"
	"strings"
	"testing"
)

func TestVerdict_NoDaemonToTalkTo_SaysWhyAndTheCommand(t *testing.T) {
	c := &control{s: &Session{host: Host{Destination: "web-1"}}, service: "chat", socket: "/run/chat/control.sock"}
	cause := errors.New("cause")
	for _, tt := range []struct {
		name  string
		state hostState
		want  error
		words []string
	}{
		{"bare machine", hostState{unit: "inactive", socket: "absent"}, ErrDaemonMissing,
			[]string{"chat is not set up", "hotdeploy setup web-1"}},
		{"another service", hostState{daemon: true, unit: "inactive", socket: "absent", services: []string{"shop", "mail"}}, ErrDaemonMissing,
			[]string{"chat is not set up", "shop, mail", "hotdeploy setup web-1"}},
		{"stopped", hostState{daemon: true, configured: true, unit: "inactive", socket: "absent"}, ErrDaemonStopped,
			[]string{"not running", "inactive", "ssh web-1 sudo systemctl start chat"}},
		{"failed, with the socket left behind", hostState{daemon: true, configured: true, unit: "failed", socket: "there"}, ErrDaemonStopped,
			[]string{"failed", "ssh web-1 sudo systemctl start chat"}},
		{"starting", hostState{daemon: true, configured: true, unit: "activating", socket: "absent"}, ErrDaemonStopped,
			[]string{"just starting", "ssh web-1 systemctl status chat"}},
		{"not in the group, folder readable", hostState{daemon: true, configured: true, unit: "active", socket: "denied", user: "ann"}, ErrDaemonRefuses,
			[]string{"ann may not use /run/chat/control.sock", "hotdeploy setup web-1 --deploy-user ann"}},
		{"not in the group, folder closed", hostState{daemon: true, configured: true, unit: "active", socket: "absent", user: "ann"}, ErrDaemonRefuses,
			[]string{"ann may not use", "--deploy-user ann"}},
		{"set up, no systemd", hostState{daemon: true, configured: true, socket: "absent"}, ErrDaemonStopped, []string{"unknown: no systemd"}},
		{"in a container, of another user", hostState{socket: "denied", user: "ann"}, ErrDaemonRefuses, []string{"ann may not use"}},
		{"all seems well", hostState{daemon: true, configured: true, unit: "active", socket: "there"}, cause, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := c.verdict(tt.state, cause)
			if !errors.Is(err, tt.want) {
				t.Fatalf("verdict %v, want %v", err, tt.want)
			}
			var f *Failure
			if errors.As(err, &f) == (tt.want == cause) {
				t.Fatalf("verdict %#v", err)
			}
			for _, w := range tt.words {
				if text := f.Error() + " " + f.Hint; !strings.Contains(text, w) {
					t.Errorf("%q is missing in %q", w, text)
				}
			}
		})
	}
}

func TestWithHost_HintOfTheDaemon_NamesTheHost(t *testing.T) {
	for hint, want := range map[string]string{
		"see why: hotdeploy logs --release 2":           "see why: hotdeploy logs web-1 --release 2",
		"hotdeploy status --watch":                      "hotdeploy status web-1 --watch",
		"hotdeploy retire 7, or hotdeploy status":       "hotdeploy retire web-1 7, or hotdeploy status web-1",
		"push one: hotdeploy push HOST (soon)":          "push one: hotdeploy push web-1 (soon)",
		"already said: hotdeploy status web-1":          "already said: hotdeploy status web-1",
		"change the port in hotdeploy.toml, and repeat": "change the port in hotdeploy.toml, and repeat",
	} {
		if got := withHost(hint, "web-1"); got != want {
			t.Errorf("withHost(%q) = %q, want %q", hint, got, want)
		}
	}
}
