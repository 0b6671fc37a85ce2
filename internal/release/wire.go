package release

import "unicode/utf8"

// JSON holds text only. A name that is not UTF-8 therefore stands in a field of its own, as base64; one that is has one form, as ever.

// wireManifest is a manifest as it is in JSON.
type wireManifest struct {
	Manifest
	Files []wireFile `json:"files"` // instead of the manifest's
}

type wireFile struct {
	File
	Path64 []byte `json:"path64,omitempty"` // instead of path
	Link64 []byte `json:"link64,omitempty"` // instead of link
}

func toWire(m *Manifest) *wireManifest {
	w := &wireManifest{Manifest: *m, Files: make([]wireFile, len(m.Files))}
	for i, f := range m.Files {
		w.Files[i].File = f
		moveBytes(&w.Files[i].Path, &w.Files[i].Path64)
		moveBytes(&w.Files[i].Link, &w.Files[i].Link64)
	}
	return w
}

func moveBytes(text *string, raw *[]byte) {
	if !utf8.ValidString(*text) {
		*text, *raw = "", []byte(*text)
	}
}

// manifest is toWire's inverse. Of a name that is there twice one is lost, and the form is not the canonical one then.
func (w *wireManifest) manifest() *Manifest {
	m := &w.Manifest
	m.Files = make([]File, len(w.Files))
	for i := range w.Files {
		f := &w.Files[i]
		if len(f.Path64) > 0 {
			f.Path = string(f.Path64)
		}
		if len(f.Link64) > 0 {
			f.Link = string(f.Link64)
		}
		m.Files[i] = f.File
	}
	return m
}
