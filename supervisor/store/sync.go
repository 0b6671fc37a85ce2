package store

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// maxSyncs is up to how many files are synced one by one. Syncing the whole file system is faster for many, but it waits
	// for everything that others on this machine have just written, which may take many seconds.
	maxSyncs = 512
	// syncers is how many syncs wait at the same time: the file system does them together.
	syncers = 16
)

// soil notes what must be synced before the release is published.
func (b *builder) soil(names ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dirty = append(b.dirty, names...)
}

// sync writes all of the release to the disk.
func (b *builder) sync(ctx context.Context) error {
	step("sync")
	do := b.syncEach
	if len(b.dirty) > maxSyncs {
		do = b.syncAll
	}
	if err := do(ctx); err != nil {
		return fmt.Errorf("write release %s to the disk: %w", b.m.Version, err)
	}
	return nil
}

func (b *builder) syncAll(context.Context) error {
	d, err := b.tree.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	return onFD(d, unix.Syncfs)
}

func (b *builder) syncEach(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(syncers)
	for _, name := range b.dirty {
		group.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return syncPath(b.tree, name)
		})
	}
	return group.Wait()
}
