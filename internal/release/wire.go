package release

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// This file is a manifest as it is in JSON. There may be very many files, so that they are read and written one by one. The order is that of
// encoding/json: of a struct's fields theirs, of a map's keys sorted; here both are the same.

// wireFile is a file. JSON holds text only: a name that is not UTF-8 stands in a field of its own, as base64; one that is has one form, as ever.
type wireFile struct {
	Link   string `json:"link,omitempty"`
	Link64 []byte `json:"link64,omitempty"` // instead of link
	Mode   uint32 `json:"mode,omitempty"`
	Path   string `json:"path,omitempty"`
	Path64 []byte `json:"path64,omitempty"` // instead of path
	SHA256 string `json:"sha256,omitempty"`
	Size   int64  `json:"size,omitempty"`
}

// wireRest is what follows the files.
type wireRest struct {
	Format       int            `json:"format"`
	Interpreters []string       `json:"interpreters,omitempty"`
	OS           string         `json:"os,omitempty"`
	Service      string         `json:"service"`
	Spec         map[string]any `json:"spec"`
	Version      string         `json:"version"`
}

func toWire(f *File) (w wireFile) {
	w.Path, w.Path64 = asText(f.Path)
	w.Link, w.Link64 = asText(f.Link)
	w.Mode, w.SHA256, w.Size = f.Mode, f.SHA256, f.Size
	return w
}

// file is toWire's inverse. Of a name that is there twice one is lost, and the form is not the canonical one then.
func (w *wireFile) file() File {
	return File{Path: asName(w.Path, w.Path64), Mode: w.Mode, Size: w.Size, SHA256: w.SHA256, Link: asName(w.Link, w.Link64)}
}

func asText(name string) (text string, raw []byte) {
	if utf8.ValidString(name) {
		return name, nil
	}
	return "", []byte(name)
}

func asName(text string, raw []byte) string {
	if len(raw) > 0 {
		return string(raw)
	}
	return text
}

// writeWire writes the canonical form.
func writeWire(out io.Writer, m *Manifest) error {
	spec, err := sorted(m.Spec)
	if err != nil {
		return err
	}
	w := newPieces(out)
	w.text(`{`)
	if m.Arch != "" {
		w.text(`"arch":`)
		w.value(m.Arch)
		w.text(`,`)
	}
	w.text(`"files":[`)
	for i := range m.Files {
		if i > 0 {
			w.text(`,`)
		}
		w.value(toWire(&m.Files[i]))
	}
	w.text(`],`)
	w.fields(wireRest{m.Format, m.Interpreters, m.OS, m.Service, spec, m.Version})
	w.text("}\n")
	return w.err
}

// sorted is v as maps, whose keys are written in their order.
func sorted(v any) (m map[string]any, err error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	err = d.Decode(&m)
	return m, err
}

// pieces writes JSON piece by piece, up to the first error.
type pieces struct {
	out  io.Writer
	json *json.Encoder // into buf
	buf  bytes.Buffer
	err  error
}

func newPieces(out io.Writer) *pieces {
	w := &pieces{out: out}
	w.json = json.NewEncoder(&w.buf)
	w.json.SetEscapeHTML(false)
	return w
}

func (w *pieces) text(s string) { w.write([]byte(s)) }

func (w *pieces) value(v any) { w.write(w.encode(v)) }

// fields writes an object without what is around it.
func (w *pieces) fields(v any) {
	w.write(bytes.TrimSuffix(bytes.TrimPrefix(w.encode(v), []byte("{")), []byte("}")))
}

func (w *pieces) encode(v any) []byte {
	w.buf.Reset()
	if err := w.json.Encode(v); w.err == nil {
		w.err = err
	}
	return bytes.TrimSuffix(w.buf.Bytes(), []byte("\n"))
}

func (w *pieces) write(b []byte) {
	if w.err == nil {
		_, w.err = w.out.Write(b)
	}
}

// readWire reads one object that is known to be well-formed JSON, and takes no field that it does not know.
func readWire(in io.Reader) (*Manifest, error) {
	d := json.NewDecoder(in)
	d.DisallowUnknownFields()
	m := new(Manifest)
	fields := map[string]any{"arch": &m.Arch, "format": &m.Format, "interpreters": &m.Interpreters, "os": &m.OS, "service": &m.Service, "spec": &m.Spec, "version": &m.Version}
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.Join(errors.New("it is no object"), err)
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, _ := key.(string)
		switch to, known := fields[name]; {
		case name == "files":
			m.Files, err = readFiles(d)
		case !known:
			err = fmt.Errorf("json: unknown field %q", name)
		default:
			err = d.Decode(to)
		}
		if err != nil {
			return nil, err
		}
	}
	return m, nil
}

func readFiles(d *json.Decoder) (list []File, err error) {
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return nil, errors.Join(errors.New("files: it is no array"), err)
	}
	for d.More() {
		if len(list) > MaxFiles {
			return nil, fmt.Errorf("files: more than the %d allowed", MaxFiles)
		}
		var w wireFile
		if err := d.Decode(&w); err != nil {
			return nil, err
		}
		list = append(list, w.file())
	}
	_, err = d.Token()
	return list, err
}
