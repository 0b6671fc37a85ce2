package store

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// CheckMachine refuses a release that cannot run here: the wrong machine, a missing interpreter or variable. Plan does it; so
// should whoever starts a release that came some time ago.
func (s *Store) CheckMachine(m *release.Manifest, f Facts) error {
	if (m.OS != "" && m.OS != f.OS) || (m.Arch != "" && m.Arch != f.Arch) {
		return refuse(api.ErrPlatform, fmt.Sprintf("build the release for %s/%s", f.OS, f.Arch),
			"the release %s is built for %s/%s, this host is %s/%s", m.Version, m.OS, m.Arch, f.OS, f.Arch)
	}
	env, _, err := s.Env(f.Env, m.Spec)
	if err != nil {
		return refuse(api.ErrEnvironment, "correct it on the host", "%v", err)
	}
	vars := map[string]string{}
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		vars[name] = value
	}
	return s.checkNeeds(m, vars)
}

// checkNeeds tells everything that is missing at once. A variable that is empty counts as missing: it is a template that nobody
// filled in.
func (s *Store) checkNeeds(m *release.Manifest, vars map[string]string) error {
	var broken, hints []string
	for _, name := range m.Spec.Run.RequireEnv {
		if vars[name] == "" {
			broken = append(broken, name+" is not set")
		}
	}
	if len(broken) > 0 {
		hints = append(hints, "set it on the host in "+s.path(envFile))
	}
	programs := missingPrograms(m, vars["PATH"])
	for _, p := range programs {
		broken = append(broken, p+" is not there")
	}
	if len(programs) > 0 {
		hints = append(hints, "install on the host: "+strings.Join(programs, " ")+", or set PATH in "+s.path(envFile))
	}
	if len(broken) == 0 {
		return nil
	}
	return refuse(api.ErrEnvironment, strings.Join(hints, "; "),
		"the release %s cannot run on this host: %s", m.Version, strings.Join(broken, "; "))
}

// missingPrograms lists what the start command needs of the host and the host has not.
func missingPrograms(m *release.Manifest, pathVar string) []string {
	var missing []string
	for _, name := range m.Interpreters {
		if !hasProgram(name, pathVar) {
			missing = append(missing, name)
		}
	}
	return missing
}

func hasProgram(name, pathVar string) bool {
	if path.IsAbs(name) {
		return isProgram(name)
	}
	for _, dir := range filepath.SplitList(pathVar) {
		if path.IsAbs(dir) && isProgram(path.Join(dir, name)) {
			return true
		}
	}
	return false
}

// isProgram follows symlinks: it looks at the host, not at our folder.
func isProgram(name string) bool {
	fi, err := os.Stat(name)
	return err == nil && fi.Mode().IsRegular() && unix.Faccessat(unix.AT_FDCWD, name, unix.X_OK, unix.AT_EACCESS) == nil
}

// isOurs tells whether a file belongs to the user that this process runs as.
func isOurs(fi os.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && st.Uid == uint32(os.Geteuid())
}
