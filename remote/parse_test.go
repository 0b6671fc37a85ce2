package remote

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestParseDestination(t *testing.T) {
	for text, want := range map[string]destination{
		"web-1":                        {host: "web-1"},
		"ann@web-1":                    {user: "ann", host: "web-1"},
		"web-1:2222":                   {host: "web-1", port: 2222},
		"ann@web-1:2222":               {user: "ann", host: "web-1", port: 2222},
		"ssh://web-1":                  {host: "web-1"},
		"ssh://ann@web-1:22/":          {user: "ann", host: "web-1", port: 22},
		"ann@example.com@web-1":        {user: "ann@example.com", host: "web-1"},
		`CORP\ann@web-1`:               {user: `CORP\ann`, host: "web-1"},
		"10.0.0.1:65535":               {host: "10.0.0.1", port: 65535},
		"::1":                          {host: "::1"},
		"ann@fe80::1%eth0":             {user: "ann", host: "fe80::1%eth0"},
		"[::1]":                        {host: "::1"},
		"ssh://ann@[2001:db8::1]:2222": {user: "ann", host: "2001:db8::1", port: 2222},
	} {
		if got, err := parseDestination(text); err != nil || got != want {
			t.Errorf("%q: got %+v, %v", text, got, err)
		}
	}
}

func TestParseDestination_RefusesWhatIsNone(t *testing.T) {
	for _, text := range []string{
		"", "-oProxyCommand=id", "-web", "ann@-web", "-ann@web", "@web", "ann@", "web:", "web:0", "web:65536", "web:ssh", "web:-1",
		"web:22:33", "[::1", "[::1]22", "[::1]:", "[web]:22", "[]", "ssh://", "two words", "tab\tbed", "new\nline", "nul\x00",
		"web;id", "web$(id)", "web`id`", "a|b", "a&b", "a>b", `a\b`, `ann\@web`, "'web'", "$ann@web", "web*", "esc\x1b[0m",
		strings.Repeat("a", 256), strings.Repeat("a", 2000),
	} {
		if got, err := parseDestination(text); !errors.Is(err, ErrDestination) {
			t.Errorf("%q: got %+v, %v", text, got, err)
		}
	}
}

func TestSplitPaths(t *testing.T) {
	for list, want := range map[string][]string{
		"":                                       nil,
		"/a /b":                                  {"/a", "/b"},
		"~/.ssh/known_hosts ~/.ssh/known_hosts2": {"~/.ssh/known_hosts", "~/.ssh/known_hosts2"},
		"/with space/a /b":                       {"/with space/a", "/b"},
		"${HOME}/a %d/b":                         {"${HOME}/a", "%d/b"},
	} {
		if got := splitPaths(list); !slices.Equal(got, want) {
			t.Errorf("%q: got %q", list, got)
		}
	}
}

func TestTokens(t *testing.T) {
	t.Setenv("HD_DIR", "/keys/%h")
	h := Host{Alias: "web", Name: "10.0.0.1", Port: 2222, User: "ann"}
	for text, want := range map[string]string{
		"/k/%h-%p-%r-%n-%%": "/k/10.0.0.1-2222-ann-web-%",
		"~/.ssh/id":         homeDir() + "/.ssh/id",
		"%d/.ssh/id":        homeDir() + "/.ssh/id",
		"${HD_DIR}/x":       "/keys/10.0.0.1/x",
		"~other/x":          "~other/x",
		"/a/%k":             "/a/web",
	} {
		if got, err := h.tokens("").path(text); err != nil || got != want {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"%", "a%", "%z", "${HD_UNSET_VARIABLE}", "${HOME"} {
		if got, err := h.tokens("").path(text); err == nil {
			t.Errorf("%q: got %q", text, got)
		}
	}
}

func TestShellQuote(t *testing.T) {
	for word, want := range map[string]string{
		"": "''", "plain-1.2_3/x": "plain-1.2_3/x", "two words": "'two words'",
		"it's": `'it'"'"'s'`, `a\b`: `'a'"\\"'b'`, "~": "'~'", "=ls": "'=ls'", "-n": "-n",
	} {
		if got := shellQuote(word); got != want {
			t.Errorf("%q: got %s", word, got)
		}
	}
}

func TestLimited(t *testing.T) {
	head, tail := &limited{limit: 5}, &limited{limit: 5, tail: true}
	for _, l := range []*limited{head, tail} {
		for _, s := range []string{"abc", "defg", "", "hijklmnop"} {
			if n, err := l.Write([]byte(s)); n != len(s) || err != nil {
				t.Errorf("wrote %d, %v", n, err)
			}
		}
	}
	if head.String() != "abcde" || tail.String() != "lmnop" || !head.cut || !tail.cut {
		t.Errorf("got %q and %q", head, tail)
	}
}

func FuzzParseDestination(f *testing.F) {
	for _, s := range []string{"web", "ann@web:22", "ssh://a@[::1]:2/", "fe80::1%eth0", "-o", "[", "a@b@c", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := parseDestination(text)
		if err != nil {
			if !errors.Is(err, ErrDestination) {
				t.Errorf("another error: %v", err)
			}
			return
		}
		if d.host == "" || strings.HasPrefix(d.host, "-") || strings.HasPrefix(d.user, "-") || d.port < 0 || d.port > 65535 ||
			strings.ContainsAny(d.host+d.user, " \t\n\x00'\"`$;&|<>()") {
			t.Errorf("%q: got %+v", text, d)
		}
		// one more reading says the same
		again := d.host
		if d.user != "" {
			again = d.user + "@" + again
		}
		if d2, err := parseDestination(again); d.port == 0 && (err != nil || d2 != d) {
			t.Errorf("%q: got %+v, then %+v, %v", text, d, d2, err)
		}
	})
}

func FuzzParseSettings(f *testing.F) {
	if out, err := exec.Command("ssh", "-G", "-F", "/dev/null", "web").Output(); err == nil {
		f.Add(out)
	}
	f.Add([]byte("hostname web\nport 22\nuser ann\nidentityfile ~/.ssh/%h\nproxyjump a,b:2\nuserknownhostsfile /a /b c\n"))
	f.Add([]byte("port 0\nproxycommand nc %h %p\nciphers x,y\nidentityagent $A\nconnecttimeout none\n"))
	f.Fuzz(func(t *testing.T, out []byte) {
		s, err := parseSettings(out)
		if err != nil {
			return
		}
		h, err := s.host(destination{host: "web"}, lists{})
		if err != nil {
			return
		}
		if h.Port < 1 || h.Port > 65535 || (destination{host: h.Name, user: h.User}).validate() != nil {
			t.Errorf("got %+v", h)
		}
	})
}

func FuzzBlankBadLines(f *testing.F) {
	f.Add([]byte("# c\n\nhost ssh-ed25519 AAAA\n|1|a|b ssh-rsa AAAA\n@revoked * x y\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		blankBadLines(data)
	})
}
