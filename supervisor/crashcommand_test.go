package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/bundle"
	"github.com/hotdeploy/hotdeploy/internal/delta"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// order is what an operator's command is to do: push a release by a bundle and follow its upgrade to the end, or replace the daemon.
type order struct {
	RunDir  string
	Replace bool
	Dir     string // of the release
	Version string
	Spec    release.Spec
}

// beCommand is that command as a process of its own, to be killed.
func beCommand() {
	var o order
	if err := json.Unmarshal([]byte(os.Getenv("TEST_COMMAND")), &o); err != nil {
		log.Fatal(err)
	}
	if err := o.carryOut(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func (o *order) carryOut(ctx context.Context) error {
	client := api.NewClient(func(ctx context.Context) (net.Conn, error) {
		return DialControl(ctx, ControlSocket(o.RunDir))
	})
	defer client.Close()
	if o.Replace {
		_, err := client.Replace(ctx, "tester")
		for ; errors.Is(err, api.ErrBusy); _, err = client.Replace(ctx, "tester") { // old releases are removed behind a push
			<-time.After(5 * time.Millisecond)
		}
		return err
	}
	packed, err := release.Pack(ctx, release.PackOptions{Dir: o.Dir, Service: "echo", Version: o.Version, Files: []string{"**"}, Spec: o.Spec})
	if err != nil {
		return err
	}
	if err := sendBundle(ctx, client, packed); err != nil {
		return err
	}
	u, err := client.Upgrade(ctx, api.UpgradeRequest{Kind: api.KindPush, Version: o.Version, Digest: packed.Digest, By: "tester"})
	if err != nil {
		return err
	}
	return follow(ctx, client, u.ID)
}

func sendBundle(ctx context.Context, client *api.Client, packed *release.Packed) error {
	var manifest, content bytes.Buffer
	if err := delta.Make(ctx, &manifest, section(nil), section(packed.Bytes)); err != nil {
		return err
	}
	plan, err := client.PlanBundle(ctx, manifest.Bytes(), "")
	if err != nil || plan.Complete {
		return err
	}
	if len(plan.Lacks) == 0 {
		_, err = client.Complete(ctx, plan.Digest)
		return err
	}
	recipe := bundle.Choose(packed.Manifest, plan.Lacks, nil, "")
	source := bundle.Source{Manifest: packed.Manifest, Open: func(f *release.File) (bundle.File, error) { return packed.Open(f.SHA256) }}
	if err := bundle.Write(ctx, &content, recipe, bundle.Source{}, source); err != nil {
		return err
	}
	id := recipe.ID(packed.Digest)
	at := min(plan.Arrived[id], int64(content.Len()))
	_, err = client.SendBundle(ctx, plan.Digest, id, at, bytes.NewReader(content.Bytes()[at:]))
	return err
}

// follow listens until the upgrade has ended, through the ends of daemons.
func follow(ctx context.Context, client *api.Client, id string) error {
	for ctx.Err() == nil {
		u, err := client.GetUpgrade(ctx, id)
		if err == nil && u.Outcome != "" || errors.Is(err, api.ErrNotFound) {
			return err
		}
		events, stop := context.WithTimeout(ctx, time.Second) // it may have ended with the daemon that was asked
		client.Events(events, 0, func(e api.Event) error {
			if e.Upgrade != nil && e.Upgrade.ID == id && e.Upgrade.Outcome != "" {
				return io.EOF
			}
			return nil
		})
		stop()
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
	return ctx.Err()
}

// draft writes the files of a release that is small, but does not fit into the buffer of a socket. The app is outside of it.
func (r *crashRig) draft(version string, changes ...change) *order {
	r.t.Helper()
	o := &order{RunDir: r.cfg.RunDir, Dir: filepath.Join(r.dir, "src-"+version), Version: version, Spec: r.specOf(append([]change{func(s *release.Spec) {
		s.Run.Command, s.Soak.Duration, s.Releases.Keep = []string{r.app}, release.Duration(30*time.Millisecond), 1
		s.Run.StopAfter = release.Duration(2 * time.Second)                          // what a crash has left hanging is soon killed
		s.Restart.Backoff, s.Restart.Crashes = release.Duration(time.Millisecond), 0 // one release may be killed often
	}}, changes...)...)}
	content := make([]byte, 700<<10)
	random := rand.NewChaCha8([32]byte([]byte(version + "                                ")[:32]))
	random.Read(content)
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		r.t.Fatal(err)
	}
	for name, b := range map[string][]byte{"large": content, "small": []byte(version)} {
		if err := os.WriteFile(filepath.Join(o.Dir, name), b, 0o644); err != nil {
			r.t.Fatal(err)
		}
	}
	return o
}

// issued is a command that runs.
type issued struct {
	ended   chan struct{}
	err     error       // after ended
	process *os.Process // nil: it runs in this process
	stop    func()
}

func (c *issued) hasEnded() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// issue lets the command run, as a process if it is to be killed.
func (r *crashRig) issue(o *order, asProcess bool) *issued {
	r.t.Helper()
	c := &issued{ended: make(chan struct{})}
	if !asProcess {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		c.stop = cancel
		go func() { defer close(c.ended); c.err = o.carryOut(ctx) }()
		return c
	}
	b, err := json.Marshal(o)
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "command")
	cmd.Env = append(os.Environ(), "TEST_COMMAND="+string(b))
	cmd.Stdout, cmd.Stderr = r.print, r.print
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	c.process, c.stop = cmd.Process, func() { cmd.Process.Kill() }
	go func() { defer close(c.ended); c.err = cmd.Wait() }()
	return c
}
