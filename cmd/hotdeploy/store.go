package main

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/library"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/remote"
)

const (
	storeVariable = "HOTDEPLOY_STORE"
	noStore       = "none"
	sftpStore     = "sftp://"
)

// library opens the releases that are kept on this side; nil: the operator wants none.
func (a *app) library(ctx context.Context) (*library.Library, error) {
	var folder library.Folder
	var err error
	switch {
	case a.store == noStore:
		return nil, nil
	case strings.HasPrefix(a.store, sftpStore):
		folder, err = a.farFolder(ctx)
	default:
		name := a.store
		if name == "" {
			if name, err = library.UsualDir(); err != nil {
				return nil, err
			}
		}
		folder, err = library.Dir(name)
	}
	if err != nil {
		return nil, err
	}
	return library.New(folder), nil
}

func (a *app) farFolder(ctx context.Context) (library.Folder, error) {
	u, err := url.Parse(a.store)
	if err != nil || u.Host == "" || strings.Trim(u.Path, "/") == "" {
		return nil, fmt.Errorf("--store %s: it is to be sftp://[user@]host/folder", a.store)
	}
	host := u.Host
	if u.User != nil {
		host = u.User.Username() + "@" + host
	}
	o := remote.Options{ConfigFile: a.sshConfig, Keys: a.keys, Prompt: terminalPrompt()}
	to, err := remote.Resolve(ctx, host, o)
	if err != nil {
		return nil, err
	}
	s, err := remote.Dial(ctx, to, o)
	if err != nil {
		return nil, err
	}
	client, err := s.SFTP(ctx)
	if err != nil {
		s.Close()
		return nil, err
	}
	folder, err := library.Over(client, u.Path, s)
	if err != nil {
		s.Close()
		return nil, err
	}
	return folder, nil
}

// keeper keeps a release while the hosts are busy with it.
type keeper struct {
	library *library.Library // nil: none is kept
	rel     *release.Packed
	once    sync.Once
	done    chan error
}

func newKeeper(l *library.Library, rel *release.Packed) *keeper {
	return &keeper{library: l, rel: rel, done: make(chan error, 1)}
}

// begin begins to keep the release, once.
func (k *keeper) begin(ctx context.Context) {
	if k.library == nil {
		return
	}
	k.once.Do(func() {
		go func() { // ends with ctx
			err := k.library.Add(ctx, k.rel)
			if err == nil {
				err = k.library.PruneDaily(time.Now(), library.Usual)
			}
			k.done <- err
		}()
	})
}

// end waits until it is kept, if it was begun.
func (k *keeper) end() (err error) {
	begun := true
	k.once.Do(func() { begun = false })
	if begun && k.library != nil {
		err = <-k.done
	}
	return err
}
