package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/hotdeploy/hotdeploy/remote"
)

func TestPush_AnotherHostFails_WhatWasDeliveredIsTakenBack(t *testing.T) {
	w := newWorld(t)
	w.project("exec sleep 1000", "20ms", "web-1")
	w.want(0, fields("push --version 1"))
	w.project("exec sleep 1001", "20ms", "127.0.0.1:1", "web-1")
	w.want(3, fields("push --version 2 production"), "web-1: uploaded ", "unreachable", "web-1: nothing was changed")
	w.wantNo("2")
	w.want(0, fields("push --version 2 web-1"), "nothing to upload", "2 is serving")
	w.want(3, fields("push --version 2 production"), "web-1: nothing was changed") // what was there before stays
	w.want(0, fields("status web-1"), "serving 2")
}

func TestPush_CancelledBetweenDeliveryAndUpgrade_WhatWasDeliveredIsTakenBack(t *testing.T) {
	w := newWorld(t)
	w.project("exec sleep 1000", "20ms", "web-1", "web-2")
	w.want(0, fields("push --version 1"))
	w.project("exec sleep 1001", "20ms", "web-1", "web-2")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var errs bytes.Buffer
	args := []string{"-c", w.path("app/hotdeploy.toml"), "--ssh-config", w.path("ssh_config"), "--store", w.path("store"), "push", "--version", "2"}
	status := run(ctx, args, strings.NewReader(""), io.Discard, io.MultiWriter(&errs, &trigger{word: "pushing chat 2", do: cancel}))
	if status != 3 || !strings.Contains(errs.String(), "web-2: nothing was changed") || !strings.Contains(errs.String(), "release 1 is serving") {
		t.Errorf("exit status %d:\n%s", status, errs.String())
	}
	w.wantNo("2")
}

// wantNo checks that web-1 does not have a release.
func (w *world) wantNo(version string) {
	w.t.Helper()
	for line := range strings.Lines(w.want(0, fields("releases web-1")).stdout) {
		if strings.HasPrefix(line, version+" ") {
			w.t.Errorf("release %s is on the host:\n%s", version, line)
		}
	}
	w.want(3, fields("rollback web-1 --to "+version), "no release "+version)
}

func TestDeliver_LineIsCut_ItsBarIsTakenAway(t *testing.T) {
	w := newWorld(t)
	w.project("exec sleep 1000", "20ms", "web-1")
	line := newCutter(t, w.ssh.Addr())
	_, port, err := net.SplitHostPort(line.ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	w.write("known_cut", "cut "+string(ssh.MarshalAuthorizedKey(w.ssh.HostKey())), 0o600)
	w.write("ssh_config_cut", "Host cut\n\tHostName 127.0.0.1\n\tHostKeyAlias cut\n\tPort "+port+"\n\tIdentityFile "+w.path("id")+
		"\n\tIdentitiesOnly yes\n\tUserKnownHostsFile "+w.path("known_cut")+"\n", 0o600)
	a := &app{stdout: io.Discard, stderr: io.Discard, sshConfig: w.path("ssh_config_cut"), keys: new(remote.Keys), leave: t.Context()}
	nowhere, cut := a.newHost("127.0.0.1:1", "chat", ""), a.newHost("cut", "chat", w.path("run/control.sock"))
	cut.told.terminal = true
	line.breakAfter(300 << 10)
	failed := a.deliver(t.Context(), []*host{nowhere, cut}, w.random("1", 512<<10))
	t.Logf("%v", failed[cut])
	if failed[cut] == nil || cut.told.upload != nil || a.bars.active != 0 || a.bars.progress != nil {
		t.Errorf("after %v there are %d bars", failed[cut], a.bars.active)
	}
	cut.d.Close()
}
