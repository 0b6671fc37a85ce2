package release

// SetDefaults sets every zero value that has a default. It is for a Spec that is made in code or about to be decoded into:
// a zero that means something ("no limit", "no soak") has to be set after it.
func (s *Spec) SetDefaults() {
	setDefault(&s.Run.StopAfter, DefaultStopTimeout)
	setDefault(&s.Ready.Check, CheckNotify)
	setDefault(&s.Ready.Timeout, DefaultReadyTimeout)
	setDefault(&s.Soak.Duration, DefaultSoak)
	setDefault(&s.Drain.MaxAge, DefaultDrainMaxAge)
	setDefault(&s.Drain.MaxGenerations, DefaultDrainMax)
	setDefault(&s.Drain.Spread, DefaultDrainSpread)
	setDefault(&s.Restart.Backoff, DefaultBackoff)
	setDefault(&s.Restart.MaxBackoff, DefaultMaxBackoff)
	setDefault(&s.Restart.Crashes, DefaultCrashes)
	setDefault(&s.Restart.Window, DefaultCrashWindow)
	setDefault(&s.Releases.Keep, DefaultKeep)
	if s.Health != nil {
		s.Health.setDefaults()
	}
	s.Resolve()
}

func (h *Health) setDefaults() {
	setDefault(&h.Interval, DefaultHealthInterval)
	setDefault(&h.Timeout, DefaultHealthTimeout)
	setDefault(&h.Failures, DefaultHealthFailures)
}

// DefaultHealth is a health check with every default that it has; Check is still to be chosen.
func DefaultHealth() *Health {
	h := new(Health)
	h.setDefaults()
	return h
}

// Resolve writes out what an empty string stands for: the network tcp, a socket's mode, the listener, path and host
// that a check asks. It changes nothing else and may be called again.
func (s *Spec) Resolve() {
	for i := range s.Listeners {
		s.Listeners[i].resolve()
	}
	s.Ready.Probe.resolve(s.Listeners)
	if s.Health != nil {
		s.Health.Probe.resolve(s.Listeners)
	}
}

func (l *Listener) resolve() {
	setDefault(&l.Network, "tcp")
	if l.Network == "unix" {
		setDefault(&l.Mode, "0660")
	}
}

func (p *Probe) resolve(listeners []Listener) {
	if p.Check != CheckTCP && p.Check != CheckHTTP {
		return
	}
	for _, l := range listeners {
		if l.Network != "udp" {
			setDefault(&p.Listener, l.Name)
			break
		}
	}
	if p.Check == CheckHTTP {
		setDefault(&p.Path, "/")
		setDefault(&p.Host, "localhost")
	}
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// clone copies s as far as Resolve changes it.
func (s Spec) clone() Spec {
	s.Listeners = append([]Listener(nil), s.Listeners...)
	if s.Health != nil {
		h := *s.Health
		s.Health = &h
	}
	return s
}
