package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// errAbsent is content that is nowhere on this host.
var errAbsent = errors.New("not there")

// fill puts every blob in its places. It does not stop at the first bad one: the uploader wants to know them all.
func (b *builder) fill(ctx context.Context, blobs []*blob) error {
	var mu sync.Mutex // guards the two below
	var wrong, absent []*blob
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(workers)
	for _, bl := range blobs {
		group.Go(func() error {
			err := b.place(ctx, bl)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, errWrong):
				wrong = append(wrong, bl)
			case errors.Is(err, errAbsent):
				absent = append(absent, bl)
			case err != nil:
				return fmt.Errorf("place %s: %w", bl, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	const hint = "push again: only what is missing is sent"
	switch {
	case len(wrong) > 0:
		return refuse(api.ErrDigest, hint, "release %s arrived damaged: %s", b.m.Version, some(wrong))
	case len(absent) > 0:
		return refuse(api.ErrIncomplete, hint, "release %s has not arrived completely: %s", b.m.Version, some(absent))
	}
	return nil
}

// place brings one blob to its first place from wherever it is, and from there to the others.
func (b *builder) place(ctx context.Context, bl *blob) error {
	first := bl.files[0]
	err := b.fromRelease(ctx, bl, first)
	if errors.Is(err, errAbsent) {
		err = b.fromPart(ctx, bl, first)
	}
	if err != nil {
		return err
	}
	step("placed")
	for _, f := range bl.files[1:] {
		if err := b.again(ctx, first, f); err != nil {
			return err
		}
	}
	return nil
}

// fromRelease takes f from another release on this host. [errAbsent]: none has it, or only damaged.
func (b *builder) fromRelease(ctx context.Context, bl *blob, f *release.File) error {
	for _, src := range bl.sourcesFor(finalMode(f)) {
		h, fi, err := openRegular(b.store.root, src.name)
		if err != nil {
			continue
		}
		err = b.take(ctx, h, f, isOurs(fi) && fi.Mode().Perm() == finalMode(f))
		h.Close()
		if errors.Is(err, errWrong) {
			b.store.setRotten(src.name)
			continue
		}
		return err
	}
	return errAbsent
}

// fromPart takes f from what was uploaded. A part that is wrong goes away, so that it can be sent again.
func (b *builder) fromPart(ctx context.Context, bl *blob, f *release.File) error {
	h, fi, err := openRegular(b.upload.parts, bl.sha)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errAbsent
	case errors.Is(err, errNotRegular):
		b.store.discard(b.upload.parts, bl.sha)
		return errWrong
	case errors.Is(err, fs.ErrPermission):
		return refuse(api.ErrForbidden, "upload with a umask of 027 or less strict",
			"the upload of %s cannot be read by the service's user", bl)
	case err != nil:
		return err
	}
	defer h.Close()
	if fi.Size() < bl.size {
		return errAbsent
	}
	private := isPrivate(fi)
	b.soil(inFiles(f.Path)) // unlike a file of a release, a part was never synced
	err = b.take(ctx, h, f, private)
	if errors.Is(err, errWrong) {
		b.store.discard(b.upload.parts, bl.sha)
	}
	if err == nil && !private {
		b.adopt(bl, f)
	}
	return err
}

// take brings the content of h to f's place, as a link where h is one that can be linked.
func (b *builder) take(ctx context.Context, h *os.File, f *release.File, linkable bool) error {
	if linkable {
		if done, err := linkChecked(ctx, h, b.tree, inFiles(f.Path), f); done || err != nil {
			return err
		}
	}
	b.soil(inFiles(f.Path))
	return copyFile(ctx, h, b.tree, inFiles(f.Path), f)
}

// again brings the content of first, which is in place and checked, to another file's place.
func (b *builder) again(ctx context.Context, first, f *release.File) error {
	h, _, err := openRegular(b.tree, inFiles(first.Path))
	if err != nil {
		return err
	}
	defer h.Close()
	if f.Mode == first.Mode && link(h, b.tree, inFiles(f.Path)) == nil {
		return nil
	}
	b.soil(inFiles(f.Path))
	return copyFile(ctx, h, b.tree, inFiles(f.Path), f)
}

// adopt replaces another user's part by our checked copy: the disk has it only once then, and a Complete after this one
// has been interrupted need not copy it again. Without it all is well too.
func (b *builder) adopt(bl *blob, f *release.File) {
	h, _, err := openRegular(b.tree, inFiles(f.Path))
	if err != nil {
		return
	}
	defer h.Close()
	temp := tempName()
	if link(h, b.upload.parts, temp) != nil {
		return
	}
	step("adopt")
	if b.upload.parts.Rename(temp, bl.sha) != nil {
		b.upload.parts.Remove(temp)
	}
}
