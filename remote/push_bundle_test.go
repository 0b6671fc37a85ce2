package remote_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/bundle"
	"github.com/hotdeploy/hotdeploy/internal/delta"
	"github.com/hotdeploy/hotdeploy/internal/library"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/internal/sshtest"
	"github.com/hotdeploy/hotdeploy/remote"
)

// planBundle asks for all of the release.
func (f *fakeDaemon) planBundle(r *http.Request) (any, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if f.full {
		return nil, api.ErrDiskSpace.With("no room")
	}
	plan := api.UploadPlan{Dir: f.parts, Arrived: f.arrived}
	var base []byte
	for _, rel := range f.has {
		plan.Has = append(plan.Has, rel.Digest)
		if rel.Digest == r.URL.Query().Get("base") {
			base = rel.Bytes
		}
	}
	var out bytes.Buffer
	section := func(b []byte) *io.SectionReader { return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))) }
	if err := delta.Apply(r.Context(), &out, section(base), section(body), release.MaxManifestBytes); err != nil {
		return nil, api.ErrBundle.With(err.Error())
	}
	m, err := release.Decode(out.Bytes())
	if err != nil {
		return nil, api.ErrManifest.With(err.Error())
	}
	plan.Digest, plan.Lacks = release.Digest(out.Bytes()), bundle.Lacks(m, nil)
	return plan, nil
}

func (f *fakeDaemon) bundle(r *http.Request) (any, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	at, err := strconv.ParseInt(r.URL.Query().Get("offset"), 10, 64)
	if err != nil {
		return nil, err
	}
	if f.stalls > 0 {
		f.stalls--
		if !f.lost {
			f.arrived = map[string]int64{r.PathValue("id"): at + int64(len(body)/2)}
		}
		return nil, api.ErrIncomplete.With("the bundle did not arrive")
	}
	if at > 0 {
		return api.ReleaseInfo{}, nil
	}
	b, err := bundle.Open(bytes.NewReader(body), int64(len(body)))
	if err != nil {
		return nil, api.ErrBundle.With(err.Error())
	}
	return api.ReleaseInfo{}, f.take(b.Base)
}

func newBundleRig(t *testing.T, take func(base string) error) *rig {
	t.Helper()
	r := newRig(t, sshtest.Options{})
	r.set(func(st *api.Status) { st.Daemon.Bundles = bundle.Format })
	r.take = take
	return r
}

func TestPush_NoRoomForABundle_TheFilesAreSent(t *testing.T) {
	r := newBundleRig(t, func(string) error { return api.ErrDiskSpace.With("no room") })
	if _, err := r.d.Push(t.Context(), packed(t, "2")); err != nil {
		t.Fatal(err)
	}
	if r.count("bundle") != 1 || r.count("complete") != 1 || !strings.Contains(r.said.String(), "no room; sending the files as they are") {
		t.Errorf("%d bundles, %d times completed, said %q", r.count("bundle"), r.count("complete"), r.said)
	}
}

// What is sent may have to come from far away first.
func TestPush_BundleThatStandsStill_GoesOnAsLongAsItGetsFurther(t *testing.T) {
	for lost, tries := range map[bool]int{false: 7, true: 3} {
		r := newBundleRig(t, nil)
		r.stalls, r.lost = 6, lost
		_, err := r.d.Push(t.Context(), packed(t, "2"))
		if (err != nil) != lost || r.count("bundle") != tries {
			t.Errorf("nothing arrives %v: %v after %d bundles, want %d", lost, err, r.count("bundle"), tries)
		}
	}
}

func TestPush_NoRoomForTheRelease_IsNotAskedTwice(t *testing.T) {
	r := newBundleRig(t, nil)
	r.full = true
	_, err := r.d.Push(t.Context(), packed(t, "2"))
	wantFailure(t, err, api.NothingChanged, "no room")
	if r.count("plan") != 1 {
		t.Errorf("planned %d times", r.count("plan"))
	}
}

func TestPush_ABaseIsNoGood_TheNextIsTaken(t *testing.T) {
	text := strings.Repeat("# what is the same\n", 500)
	bases := []*release.Packed{versionOf(t, "1", text), versionOf(t, "2", "# other\n"+text), versionOf(t, "3", "# another\n"+text)}
	for bad, tries := range map[int]int{1: 2, 2: 3} { // the third is without any
		t.Run(fmt.Sprint(bad), func(t *testing.T) {
			var tried []string
			r := newBundleRig(t, func(base string) error {
				if tried = append(tried, base); len(tried) <= bad {
					return api.ErrBundle.With("it is damaged")
				}
				return nil
			})
			r.has = bases
			next := versionOf(t, "4", text+"# new\n")
			r.d.Bundler = bundlerFor(t, next, bases)
			if _, err := r.d.Push(t.Context(), next); err != nil {
				t.Fatal(err)
			}
			if len(tried) != tries || tried[0] == "" || tried[1] == "" || tried[0] == tried[1] || tries == 3 && tried[2] != "" {
				t.Errorf("tried %.6q", tried)
			}
			said := r.said.String()
			if !strings.Contains(said, "damaged; sending it with release "+tried[1][:12]) || strings.Contains(said, "without another release") != (tries == 3) {
				t.Errorf("said %q", said)
			}
		})
	}
}

func bundlerFor(t *testing.T, rel *release.Packed, bases []*release.Packed) *remote.Bundler {
	t.Helper()
	folder, err := library.Dir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	l := library.New(folder)
	t.Cleanup(func() { l.Close() })
	for _, base := range bases {
		if err := l.Add(t.Context(), base); err != nil {
			t.Fatal(err)
		}
	}
	b := remote.NewBundler(t.Context(), rel, l)
	t.Cleanup(b.Close)
	return b
}
