package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/delta"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// readManifest takes a manifest from a request. It comes as it is, or as a delta, from the manifest of a release that is here or
// from nothing.
func (s *Supervisor) readManifest(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, fmt.Errorf("read the manifest: %w", err)
	}
	if r.Header.Get("Content-Type") != api.DeltaType {
		return body, nil
	}
	var base []byte
	if digest := r.URL.Query().Get("base"); digest != "" {
		if base, err = s.store.ManifestOf(digest); err != nil {
			return nil, api.ErrBundle.With(fmt.Sprintf("the manifest is based on another: %v", err))
		}
	}
	var out bytes.Buffer
	if err := delta.Apply(r.Context(), &out, section(base), section(body), release.MaxManifestBytes); err != nil {
		return nil, api.ErrBundle.With(fmt.Sprintf("the manifest: %v", err))
	}
	return out.Bytes(), nil
}

func section(b []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
}

// takeBundle takes a bundle in, or the rest of one, and makes the release of it. What has arrived when the line is lost stays.
func (s *Supervisor) takeBundle(w http.ResponseWriter, r *http.Request) (any, error) {
	digest, id := r.PathValue("digest"), r.PathValue("id")
	offset, err := strconv.ParseInt(r.URL.Query().Get("offset"), 10, 64)
	if err != nil {
		return nil, api.ErrBadRequest.With("an offset is a number")
	}
	rc := http.NewResponseController(w)
	body := &steady{r: r.Body, rc: rc, pause: 4 * s.patience.read} // the sender may have to compute the next piece
	if err := s.store.Receive(r.Context(), digest, id, offset, body); err != nil {
		// as after any body that was not read to its end
		w.Header().Set("Connection", "close")
		if e := new(api.Error); !errors.As(err, &e) {
			err = api.ErrIncomplete.With(fmt.Sprintf("the bundle did not arrive: %v", err))
		}
		return nil, err
	}
	if err := s.store.Rebuild(r.Context(), digest, id); err != nil {
		return nil, err
	}
	return s.completeUpload(w, r)
}
