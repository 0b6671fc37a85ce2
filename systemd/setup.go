package systemd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strings"
)

const (
	configDir      = "/etc/hotdeploy"
	maxSetupSpec   = 1 << 20
	maxConfigText  = 64 << 10
	maxDeployUsers = 100
)

// SetupSpec is what Setup makes true on a host. User, Group and Root are left
// empty for their defaults: a user, group or folder that is there already and
// not ours is only taken where it was named.
type SetupSpec struct {
	UnitSpec
	ConfigText         string   `json:"config_text"`                    // of UnitSpec.ConfigPath
	DeployGroupMembers []string `json:"deploy_group_members,omitempty"` // who may upload; they exist
	ReadJournal        bool     `json:"read_journal,omitempty"`         // the members may read the host's journal, all of it
	Enable             bool     `json:"enable,omitempty"`               // start at boot; false leaves it as it is
	Start              bool     `json:"start,omitempty"`                // start now if it does not run; false leaves it as it is
}

// Report is what Setup did and found.
type Report struct {
	Changes []string `json:"changes"` // in the order in which they were made, one line each
	Notes   []string `json:"notes,omitempty"`
	// RestartNeeded says what of it is not in force before the service is
	// restarted. Setup never restarts it: that closes connections.
	RestartNeeded []string `json:"restart_needed,omitempty"`
	Running       bool     `json:"running"`
	// NotReplaced says why the daemon that runs is still the one before.
	NotReplaced string `json:"not_replaced,omitempty"`
}

// Lines is the report for an operator.
func (r Report) Lines() []string {
	lines := append([]string(nil), r.Changes...)
	if len(lines) == 0 {
		lines = append(lines, "nothing to change")
	}
	if r.NotReplaced != "" {
		lines = append(lines, "not replaced: "+r.NotReplaced)
	}
	for _, why := range r.RestartNeeded {
		lines = append(lines, "restart needed: "+why)
	}
	for _, note := range r.Notes {
		lines = append(lines, "note: "+note)
	}
	return lines
}

var (
	// ErrForeign says that something of that name is there and is not ours.
	ErrForeign = errors.New("not made by hotdeploy")
	// ErrNoSystemd says that no systemd runs this host.
	ErrNoSystemd = errors.New("this host is not run by systemd")
	// ErrSetupBusy says that another set-up is under way on this host.
	ErrSetupBusy = errors.New("another set-up is under way on this host")
	// ErrNotReplaced says that the daemon that runs could not make way for the
	// one that is set up now. Both it and the app run on.
	ErrNotReplaced = errors.New("the running daemon was not replaced")
	// ErrTooOld is for a ReplaceFunc: that daemon can never make way.
	ErrTooOld = errors.New("it is too old to make way for another one")
	// ErrUnanswered is for a ReplaceFunc: nobody has said that nothing changed,
	// so a replacement may be under way still.
	ErrUnanswered = errors.New("it has not said what came of it")
)

// ReplaceFunc asks the daemon of a service, which runs, to make way for the one
// that is installed, and returns when it has. With an error that is not
// ErrUnanswered nothing has changed.
type ReplaceFunc func(ctx context.Context) error

// DecodeSetupSpec reads a spec as JSON. An unknown key is an error: it is
// something that this version would leave undone.
func DecodeSetupSpec(r io.Reader) (SetupSpec, error) {
	var spec SetupSpec
	limited := &io.LimitedReader{R: r, N: maxSetupSpec}
	dec := json.NewDecoder(limited)
	dec.DisallowUnknownFields()
	err := dec.Decode(&spec)
	if err == nil && dec.More() {
		err = errors.New("something follows it")
	}
	if err != nil && limited.N <= 0 {
		err = fmt.Errorf("longer than %d bytes", maxSetupSpec)
	}
	if err != nil {
		return SetupSpec{}, fmt.Errorf("%w: %w", ErrInvalidSpec, err)
	}
	return spec, nil
}

// memberPattern allows what directory services call their users.
var memberPattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.@-]{0,63}$`)

// Validate says what is wrong with a spec without a look at the host. Call it
// after WithDefaults.
func (s SetupSpec) Validate() error {
	errs := []error{s.UnitSpec.Validate()}
	if filepath.Dir(s.ConfigPath) != configDir || filepath.Ext(s.ConfigPath) != ".toml" {
		errs = append(errs, fmt.Errorf("%w: configuration path %q: set-up writes %s/*.toml only", ErrInvalidSpec, s.ConfigPath, configDir))
	}
	if len(s.ConfigText) > maxConfigText || strings.Contains(s.ConfigText, "\x00") {
		errs = append(errs, fmt.Errorf("%w: configuration text: not up to %d bytes of text", ErrInvalidSpec, maxConfigText))
	}
	if len(s.DeployGroupMembers) > maxDeployUsers {
		errs = append(errs, fmt.Errorf("%w: more than %d members of the group", ErrInvalidSpec, maxDeployUsers))
	}
	for _, m := range s.DeployGroupMembers {
		if !memberPattern.MatchString(m) {
			errs = append(errs, fmt.Errorf("%w: member %q: not a user name", ErrInvalidSpec, clip(m, 64)))
		}
	}
	return errors.Join(errs...)
}

// WithDefaults fills in what was left out.
func (s SetupSpec) WithDefaults() SetupSpec {
	s.UnitSpec = s.UnitSpec.WithDefaults()
	return s
}
