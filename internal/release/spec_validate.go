package release

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits on a spec.
const (
	maxArgs      = 256
	maxArgBytes  = 4 << 10
	maxVars      = 256
	maxVarBytes  = 32 << 10
	maxShared    = 64
	maxListeners = 64
	maxCount     = 1000

	day = 24 * time.Hour
)

var varForm = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)

// Validate checks every rule of a spec and tells the broken ones, as an [InvalidError] whose fields are named as in
// hotdeploy.toml. What depends on the release's files is checked by the manifest's Validate.
func (s *Spec) Validate() error {
	var p problems
	s.check(&p)
	return p.err()
}

func (s *Spec) check(p *problems) {
	s.Run.check(p)
	checkListeners(s.Listeners, p)
	s.Ready.check(s.Listeners, p)
	if s.Health != nil {
		s.Health.check(s.Listeners, p)
	}
	checkDuration(p, "soak.duration", s.Soak.Duration, 0, day)
	checkDuration(p, "drain.max_age", s.Drain.MaxAge, 0, 366*day)
	checkCount(p, "drain.max_generations", s.Drain.MaxGenerations, 0)
	checkDuration(p, "drain.spread", s.Drain.Spread, 0, day)
	s.Restart.check(p)
	checkCount(p, "releases.keep", s.Releases.Keep, 0)
}

func (r *Run) check(p *problems) {
	checkCommand(p, "run.command", r.Command)
	checkEnv(p, r.Env)
	checkRequired(p, r.RequireEnv)
	if len(r.Shared) > maxShared {
		p.add("run.shared", "%d of them, more than the %d allowed", len(r.Shared), maxShared)
	} else {
		checkSharedPaths(p, r.Shared)
	}
	checkDuration(p, "run.stop_timeout", r.StopAfter, 1, day)
}

func checkCommand(p *problems, field string, command []string) {
	switch {
	case len(command) == 0 || command[0] == "":
		p.add(field, `must not be empty: write the program and its arguments, as in ["bin/chat", "-v"]`)
		return
	case len(command) > maxArgs:
		p.add(field, "has %d arguments, more than the %d allowed", len(command), maxArgs)
		return
	}
	for i, arg := range command {
		if err := checkString(arg, maxArgBytes); err != nil {
			p.add(fmt.Sprintf("%s[%d]", field, i), "%v", err)
		}
	}
}

func checkString(s string, most int) error {
	switch {
	case len(s) > most:
		return fmt.Errorf("is longer than %d bytes", most)
	case !utf8.ValidString(s):
		return fmt.Errorf("%s: is not valid UTF-8", quote(s))
	case strings.ContainsRune(s, 0):
		return fmt.Errorf("%s: has a NUL byte in it", quote(s))
	}
	return nil
}

func checkEnv(p *problems, env map[string]string) {
	if len(env) > maxVars {
		p.add("run.env", "%d variables, more than the %d allowed", len(env), maxVars)
		return
	}
	for _, name := range sortedKeys(env) {
		if err := checkVar(name); err != nil {
			p.add("run.env", "%v", err)
		} else if err := checkString(env[name], maxVarBytes); err != nil {
			p.add("run.env."+name, "%v", err)
		}
	}
}

func checkRequired(p *problems, names []string) {
	if len(names) > maxVars {
		p.add("run.require_env", "%d names, more than the %d allowed", len(names), maxVars)
		return
	}
	for i, name := range names {
		field := fmt.Sprintf("run.require_env[%d]", i)
		if err := checkVar(name); err != nil {
			p.add(field, "%v", err)
		} else if slices.Contains(names[:i], name) {
			p.add(field, "%s: comes twice", quote(name))
		}
	}
}

// checkVar refuses the variables of the contract with the app: the supervisor sets them for each generation anew.
func checkVar(name string) error {
	switch {
	case !varForm.MatchString(name):
		return fmt.Errorf("%s: a variable's name has letters, digits and _, and does not begin with a digit", quote(name))
	case strings.HasPrefix(name, "HOTDEPLOY_"), strings.HasPrefix(name, "LISTEN_"), name == "NOTIFY_SOCKET",
		name == "WATCHDOG_PID", name == "WATCHDOG_USEC":
		return fmt.Errorf("%s: is set by hotdeploy", quote(name))
	}
	return nil
}

func checkSharedPaths(p *problems, shared []string) {
	for i, s := range shared {
		field := fmt.Sprintf("run.shared[%d]", i)
		if err := checkPath(s); err != nil {
			p.add(field, "%s: %v", quote(s), err)
		}
		for _, other := range shared[:i] {
			if s == other || strings.HasPrefix(s, other+"/") || strings.HasPrefix(other, s+"/") {
				p.add(field, "%s: is the same as %s, or one is inside the other", quote(s), quote(other))
			}
		}
	}
}

func (r *Ready) check(listeners []Listener, p *problems) {
	all := []string{CheckNotify, CheckTCP, CheckHTTP, CheckCommand, CheckDelay}
	r.Probe.check("ready", all, listeners, p)
	checkDuration(p, "ready.timeout", r.Timeout, 1, time.Hour)
	switch {
	case r.Check == CheckDelay && r.Delay <= 0:
		p.add("ready.delay", `must be positive with check = "delay"`)
	case r.Check == CheckDelay && r.Delay >= r.Timeout:
		p.add("ready.delay", "%v: must be shorter than ready.timeout, which is %v", r.Delay, r.Timeout)
	case r.Check != CheckDelay && r.Delay != 0:
		p.add("ready.delay", `is only for check = "delay"`)
	}
}

func (h *Health) check(listeners []Listener, p *problems) {
	h.Probe.check("health", []string{CheckTCP, CheckHTTP, CheckCommand}, listeners, p)
	checkDuration(p, "health.interval", h.Interval, 1, time.Hour)
	checkDuration(p, "health.timeout", h.Timeout, 1, time.Hour)
	checkCount(p, "health.failures", h.Failures, 1)
}

func (b *Probe) check(section string, kinds []string, listeners []Listener, p *problems) {
	if !slices.Contains(kinds, b.Check) {
		p.add(section+".check", "%s: must be one of %s", quote(b.Check), strings.Join(kinds, ", "))
		return
	}
	if b.Check == CheckTCP || b.Check == CheckHTTP {
		b.checkListener(section, listeners, p)
	} else if b.Listener != "" {
		p.add(section+".listener", "is only for check = \"tcp\" or \"http\"")
	}
	if b.Check == CheckHTTP {
		b.checkRequest(section, p)
	} else if b.Path != "" || b.Host != "" {
		p.add(section+b.pathOrHost(), "is only for check = \"http\"")
	}
	if b.Check == CheckCommand {
		checkCommand(p, section+".command", b.Command)
	} else if len(b.Command) > 0 {
		p.add(section+".command", "is only for check = \"command\"")
	}
}

func (b *Probe) pathOrHost() string {
	if b.Path != "" {
		return ".path"
	}
	return ".host"
}

func (b *Probe) checkListener(section string, listeners []Listener, p *problems) {
	i := slices.IndexFunc(listeners, func(l Listener) bool {
		return l.Network != "udp" && (b.Listener == "" || l.Name == b.Listener)
	})
	switch {
	case i >= 0:
	case b.Listener == "":
		p.add(section+".check", "%s: needs a [[listen]] that takes connections", quote(b.Check))
	default:
		p.add(section+".listener", "%s: no [[listen]] with that name takes connections", quote(b.Listener))
	}
}

func (b *Probe) checkRequest(section string, p *problems) {
	if b.Path != "" && (b.Path[0] != '/' || len(b.Path) > MaxPathBytes || strings.ContainsFunc(b.Path, notVisible)) {
		p.add(section+".path", "%s: must begin with / and have no spaces or control characters", quote(b.Path))
	}
	if len(b.Host) > 255 || strings.ContainsFunc(b.Host, notVisible) || strings.ContainsAny(b.Host, "/?#@") {
		p.add(section+".host", "%s: must be a host's name", quote(b.Host))
	}
}

// notVisible reports what must not be in a line of an HTTP request.
func notVisible(r rune) bool {
	return r == utf8.RuneError || unicode.IsSpace(r) || unicode.IsControl(r)
}

func (r *Restart) check(p *problems) {
	checkDuration(p, "restart.backoff", r.Backoff, 1, time.Hour)
	checkDuration(p, "restart.max_backoff", r.MaxBackoff, 1, day)
	if r.Backoff > r.MaxBackoff && r.MaxBackoff > 0 {
		p.add("restart.max_backoff", "%v: must not be shorter than restart.backoff, which is %v", r.MaxBackoff, r.Backoff)
	}
	checkCount(p, "restart.crashes", r.Crashes, 0)
	checkDuration(p, "restart.window", r.Window, 1, 30*day)
}

func checkDuration(p *problems, field string, d Duration, least, most time.Duration) {
	switch {
	case least > 0 && d <= 0:
		p.add(field, "must be positive")
	case d < 0:
		p.add(field, "must not be negative")
	case time.Duration(d) > most:
		p.add(field, "%v: must be at most %v", d, most)
	}
}

func checkCount(p *problems, field string, n, least int) {
	if n < least || n > maxCount {
		p.add(field, "%d: must be %d to %d", n, least, maxCount)
	}
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
