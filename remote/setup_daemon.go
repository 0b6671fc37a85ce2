package remote

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// installDaemon puts the daemon's binary in its place, if it is not there already.
func (u *setup) installDaemon(ctx context.Context, m machine) error {
	file, err := findDaemon(u.o.Daemon, m.os, m.arch)
	if err != nil {
		return err
	}
	digest, size, err := digestOf(file)
	if err != nil {
		return fmt.Errorf("read the daemon's binary: %w", err)
	}
	if digest == m.digest {
		return nil
	}
	if err := u.replace(ctx, m, file, digest, size); err != nil {
		return fmt.Errorf("install %s: %w", daemonPath, err)
	}
	verb := "installed"
	if m.digest != "" {
		verb = "replaced"
	}
	u.changed(verb + " " + daemonPath)
	return nil
}

// replaceScript copies a file beside its destination, compares it there, sees whether it runs at all, and renames it: whoever starts the daemon finds the
// old one or the new one, also after a power cut.
const replaceScript = `
set -e
mkdir -p "${3%/*}"
tmp=$(mktemp "${3%/*}/.hotdeployd-XXXXXX")
trap 'rm -f "$tmp"' EXIT
cat "$1" > "$tmp"
chown 0:0 "$tmp"
chmod 755 "$tmp"
[ "$(sha256sum "$tmp" | cut -d' ' -f1)" = "$2" ] || { echo "it was damaged on the way; try again" >&2; exit 1; }
sync "$tmp" 2>/dev/null || sync
timeout 20 "$tmp" version >/dev/null || { echo "it does not run on this host" >&2; exit 1; }
mv -f "$tmp" "$3"
sync "${3%/*}" 2>/dev/null || sync`

func (u *setup) replace(ctx context.Context, m machine, file, digest string, size int64) error {
	out, err := u.s.Output(ctx, maxProbe, "mktemp", "-d")
	if err != nil {
		return err
	}
	dir := strings.TrimRight(string(out), "\n")
	defer u.removeTemp(ctx, dir)
	u.say(fmt.Sprintf("sending the daemon (%s, %.1f MB)", filepath.Base(file), float64(size)/1e6))
	part := Part{Name: digest, Size: size, Open: func() (Source, error) { return os.Open(file) }}
	if err := Upload(ctx, u.s, dir, []Part{part}, nil); err != nil {
		return err
	}
	return u.s.Run(ctx, m.asRoot("sh", "-c", replaceScript, "sh", dir+"/"+digest, digest, daemonPath), nil, nil, nil)
}

// removeTemp tidies up also when ctx has ended. What a lost line leaves is one file in the host's temporary folder.
func (u *setup) removeTemp(ctx context.Context, dir string) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), stateTimeout)
	defer stop()
	if err := u.s.Run(ctx, []string{"rm", "-rf", "--", dir}, nil, nil, nil); err != nil {
		u.say(fmt.Sprintf("%s on the host was left behind: %v", dir, err))
	}
}

var elfMachines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// findDaemon returns the path of a daemon's binary for that platform on this machine. An empty given means the usual places.
func findDaemon(given, goos, arch string) (string, error) {
	places := []string{given}
	if given == "" {
		var err error
		if places, err = daemonPlaces("hotdeployd-" + goos + "-" + arch); err != nil {
			return "", err
		}
	}
	for _, file := range places {
		switch _, err := os.Stat(file); {
		case err == nil:
			return file, checkDaemon(file, goos, arch)
		case given != "":
			return "", noDaemon(fmt.Sprintf("--daemon: %v", err))
		}
	}
	return "", noDaemon(fmt.Sprintf("there is no daemon for %s/%s here; looked for %s", goos, arch, strings.Join(places, " and ")))
}

func noDaemon(text string) error {
	return refusal(ErrNoDaemon, text, "build it with  make build  in hotdeploy's source, or say where it is with  --daemon PATH")
}

// daemonPlaces is beside this program and in lib/hotdeploy beside its folder, where a package would put it.
func daemonPlaces(name string) ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program's own folder: %w", err)
	}
	if real, err := filepath.EvalSymlinks(self); err == nil {
		self = real
	}
	dir := filepath.Dir(self)
	return []string{filepath.Join(dir, name), filepath.Join(dir, "..", "lib", "hotdeploy", name)}, nil
}

func checkDaemon(file, goos, arch string) error {
	f, err := elf.Open(file)
	if err != nil {
		return noDaemon(fmt.Sprintf("%s is not a program for %s/%s: %v", file, goos, arch, err))
	}
	defer f.Close()
	if f.Machine != elfMachines[arch] {
		return noDaemon(fmt.Sprintf("%s is a program for %v, the host is %s/%s", file, f.Machine, goos, arch))
	}
	return nil
}

func digestOf(file string) (digest string, size int64, err error) {
	f, err := os.Open(file)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	if size, err = io.Copy(h, f); err != nil {
		return "", 0, err
	}
	return hex.EncodeToString(h.Sum(nil)), size, nil
}
