package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// account is a line of passwd, wherever the host keeps them.
type account struct {
	uid, gid int
	comment  string
}

// groupEntry is a line of the group database.
type groupEntry struct {
	gid     int
	members []string
}

// userComment is how a user that we made is known again.
func userComment(service string) string { return "hotdeploy service " + service }

// checkAccounts: a name that is taken is only used where the operator named
// it, so that no service called "mail" or "docker" gets the rights of what
// is called so already.
func (s *setup) checkAccounts(ctx context.Context) (err error) {
	if s.user, s.hasUser, err = lookupUser(ctx, s.spec.User); err != nil {
		return err
	}
	if s.group, s.hasGroup, err = lookupGroup(ctx, s.spec.Group); err != nil {
		return err
	}
	if s.hasUser && s.user.uid == 0 || s.hasGroup && s.group.gid == 0 {
		return fmt.Errorf("%w: user %s, group %s: a service of ours has no rights of root's", ErrInvalidSpec, s.spec.User, s.spec.Group)
	}
	ours := s.hasUser && s.user.comment == userComment(s.spec.Service)
	if s.hasUser && !ours && !s.named.user {
		return fmt.Errorf("user %s exists: %w; name it if it is meant, or choose another service name", s.spec.User, ErrForeign)
	}
	ourGroup := s.hasUser && s.group.gid == s.user.gid
	if s.hasGroup && !ourGroup && !s.named.group {
		return fmt.Errorf("group %s exists: %w; name it if it is meant, or choose another service name", s.spec.Group, ErrForeign)
	}
	return nil
}

func (s *setup) checkMembers(ctx context.Context) error {
	for _, m := range s.spec.DeployGroupMembers {
		a, found, err := lookupUser(ctx, m)
		if err != nil {
			return err
		}
		if !found {
			return fmt.Errorf("%w: member %s of group %s: no such user on this host", ErrInvalidSpec, m, s.spec.Group)
		}
		in := s.hasGroup && (a.gid == s.group.gid || slices.Contains(s.group.members, m))
		if !in && !slices.Contains(s.members, m) {
			s.members = append(s.members, m)
		}
	}
	return s.checkReaders(ctx)
}

// journalGroup is who may read all of the journal (systemd-journald.service(8)). A service's lines alone cannot be had.
const journalGroup = "systemd-journal"

// checkReaders: who may push does not see what the app says unless he may read the journal. That is more than a push needs, so it is not
// given unasked.
func (s *setup) checkReaders(ctx context.Context) error {
	if len(s.spec.DeployGroupMembers) == 0 {
		return nil
	}
	g, found, err := lookupGroup(ctx, journalGroup)
	if err != nil || !found {
		return err
	}
	for _, m := range s.spec.DeployGroupMembers {
		a, _, err := lookupUser(ctx, m)
		switch {
		case err != nil:
			return err
		case a.uid == 0, a.gid == g.gid, slices.Contains(g.members, m), slices.Contains(s.readers, m):
		case s.spec.ReadJournal:
			s.readers = append(s.readers, m)
		default:
			s.report.Notes = append(s.report.Notes, fmt.Sprintf("%s may push, but not see what the app says (hotdeploy logs): that needs the whole journal of this host; "+
				"allow it with --read-journal", m))
		}
	}
	return nil
}

func (s *setup) makeAccounts(ctx context.Context) error {
	if !s.hasGroup && (s.hasUser || s.spec.Group != s.spec.User) {
		if err := tool(ctx, "groupadd", "--system", s.spec.Group); err != nil {
			return err
		}
		s.changed("created group %s", s.spec.Group)
		s.hasGroup = true
	}
	if !s.hasUser {
		if err := s.makeUser(ctx); err != nil {
			return err
		}
		s.changed("created user %s", s.spec.User)
	}
	for _, m := range s.members {
		if err := tool(ctx, "usermod", "--append", "--groups", s.spec.Group, m); err != nil {
			return err
		}
		s.changed("added %s to the group %s (from its next login on)", m, s.spec.Group)
	}
	for _, m := range s.readers {
		if err := tool(ctx, "usermod", "--append", "--groups", journalGroup, m); err != nil {
			return err
		}
		s.changed("added %s to the group %s: may read the whole journal of this host (from its next login on)", m, journalGroup)
	}
	return s.rereadAccounts(ctx)
}

// makeUser makes a user of that name with its group in one go, so that a power
// cut leaves no group that looks like somebody else's.
func (s *setup) makeUser(ctx context.Context) error {
	args := []string{
		"--system", "--no-create-home", "--home-dir", s.spec.Root, "--shell", "/usr/sbin/nologin",
		"--comment", userComment(s.spec.Service),
	}
	if s.hasGroup {
		args = append(args, "--gid", s.spec.Group)
	} else {
		args = append(args, "--user-group")
	}
	return tool(ctx, "useradd", append(args, s.spec.User)...)
}

func (s *setup) rereadAccounts(ctx context.Context) (err error) {
	if s.user, s.hasUser, err = lookupUser(ctx, s.spec.User); err != nil {
		return err
	}
	if s.group, s.hasGroup, err = lookupGroup(ctx, s.spec.Group); err != nil {
		return err
	}
	if !s.hasUser || !s.hasGroup {
		return fmt.Errorf("user %s, group %s: made, and yet not there", s.spec.User, s.spec.Group)
	}
	return nil
}

// lookupUser asks getent rather than os/user: a binary without cgo reads
// /etc/passwd only, and the user may come from a directory service.
func lookupUser(ctx context.Context, name string) (account, bool, error) {
	fields, found, err := getent(ctx, "passwd", name, 7)
	if err != nil || !found {
		return account{}, false, err
	}
	uid, err1 := strconv.Atoi(fields[2])
	gid, err2 := strconv.Atoi(fields[3])
	if err := errors.Join(err1, err2); err != nil {
		return account{}, false, fmt.Errorf("look up user %s: %w", name, err)
	}
	return account{uid: uid, gid: gid, comment: fields[4]}, true, nil
}

func lookupGroup(ctx context.Context, name string) (groupEntry, bool, error) {
	fields, found, err := getent(ctx, "group", name, 4)
	if err != nil || !found {
		return groupEntry{}, false, err
	}
	gid, err := strconv.Atoi(fields[2])
	if err != nil {
		return groupEntry{}, false, fmt.Errorf("look up group %s: %w", name, err)
	}
	return groupEntry{gid: gid, members: strings.Split(fields[3], ",")}, true, nil
}

// getent: the names it is asked for were validated; a number would be taken
// for an id.
func getent(ctx context.Context, database, name string, columns int) ([]string, bool, error) {
	out, err := toolCommand(ctx, "getent", database, name).Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 2 {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("look up %s in %s: %w", name, database, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	fields := strings.Split(line, ":")
	if len(fields) != columns || fields[0] != name {
		return nil, false, fmt.Errorf("look up %s in %s: odd answer %q", name, database, clip(line, 200))
	}
	return fields, true, nil
}

// tool runs one of the host's own programs.
func tool(ctx context.Context, name string, args ...string) error {
	out, err := toolCommand(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, clip(printable(string(out)), 500))
	}
	return nil
}

func toolCommand(ctx context.Context, name string, args ...string) *exec.Cmd {
	path := name
	for _, dir := range []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		if _, err := os.Stat(dir + "/" + name); err == nil {
			path = dir + "/" + name
			break
		}
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}
