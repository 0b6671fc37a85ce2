package store

import (
	"context"
	"errors"
	"fmt"
	"path"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// Remove deletes a release. One that is committed, previous or in use is [api.ErrConflict].
func (s *Store) Remove(ctx context.Context, version string, inUse func(digest string) bool) error {
	if err := s.building.take(ctx); err != nil {
		return err
	}
	defer s.building.give()
	info, err := s.Release(version)
	if err != nil {
		return err
	}
	kept, err := s.keeper(inUse)
	if err != nil {
		return err
	}
	if why := kept(version, info.Digest); why != "" {
		return refuse(api.ErrConflict, "", "release %s stays: it is %s", version, why)
	}
	return s.remove(version)
}

// Prune deletes all releases but the committed one, the previous one, those in use, and besides them the keep newest.
// It returns the versions that are gone. A release that is about to be started counts as in use. Without a state that can be
// read it deletes nothing.
func (s *Store) Prune(ctx context.Context, keep int, inUse func(digest string) bool) ([]string, error) {
	if err := s.building.take(ctx); err != nil {
		return nil, err
	}
	defer s.building.give()
	kept, err := s.keeper(inUse)
	if err != nil {
		return nil, err
	}
	list, err := s.List()
	if err != nil {
		return nil, err
	}
	var gone []string
	for _, info := range list { // the newest first
		if ctx.Err() != nil {
			return gone, context.Cause(ctx)
		}
		if kept(info.Version, info.Digest) != "" {
			continue
		}
		if keep > 0 {
			keep--
			continue
		}
		if err := s.remove(info.Version); err != nil {
			return gone, err
		}
		gone = append(gone, info.Version)
	}
	return gone, nil
}

// keeper returns a function that says why a release must stay; empty: nothing holds it.
func (s *Store) keeper(inUse func(digest string) bool) (func(version, digest string) string, error) {
	st, err := s.LoadState()
	if err != nil {
		return nil, fmt.Errorf("find out what is in use: %w", err)
	}
	current, err := s.Current()
	if err != nil {
		return nil, fmt.Errorf("find out what is in use: %w", err)
	}
	return func(version, digest string) string {
		switch {
		case st.roleOf(digest) != "":
			return "the " + st.roleOf(digest) + " one"
		case version == current:
			return "the current one"
		case inUse != nil && inUse(digest):
			return "in use"
		}
		return ""
	}, nil
}

// remove takes the release out of sight before it touches its files: a half deleted one never looks like one.
func (s *Store) remove(version string) error {
	temp := path.Join(releasesDir, tempName())
	if err := s.root.Rename(path.Join(releasesDir, version), temp); err != nil {
		return fmt.Errorf("remove release %s: %w", version, err)
	}
	err := syncPath(s.root, releasesDir)
	step("removing")
	if err := errors.Join(err, forceRemove(s.root, temp)); err != nil {
		return fmt.Errorf("remove release %s: %w", version, err)
	}
	return nil
}

// discardRelease removes what was begun and will not be finished. What resists goes at the next Open.
func (s *Store) discardRelease(temp string) {
	if err := forceRemove(s.root, temp); err != nil {
		s.warn("remove %s: %w", s.path(temp), err)
	}
}
