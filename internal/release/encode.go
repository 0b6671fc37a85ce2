package release

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// ErrNewerFormat is a manifest of a form that this program does not know yet.
var ErrNewerFormat = errors.New("the manifest has a newer format")

// Encode writes m in its canonical form: one line of JSON, keys sorted, no spaces, a newline at the end.
// It validates m first, so that what Encode writes, Decode reads.
func Encode(m *Manifest) ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	var b bytes.Buffer
	err := writeWire(&b, m)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if b.Len() > MaxManifestBytes {
		return nil, fmt.Errorf("manifest: %d bytes, more than the %d allowed: pack fewer files", b.Len(), MaxManifestBytes)
	}
	return b.Bytes(), nil
}

// comparison is written to, and tells whether that is what it holds. It holds what is still to come.
type comparison struct {
	rest   []byte
	differ bool
}

func (c *comparison) Write(b []byte) (int, error) {
	if !bytes.HasPrefix(c.rest, b) {
		c.differ = true
		return len(b), nil
	}
	c.rest = c.rest[len(b):]
	return len(b), nil
}

// Decode reads a manifest and validates it. It takes only the form that Encode writes, so that one manifest has one digest.
func Decode(b []byte) (*Manifest, error) {
	if len(b) > MaxManifestBytes {
		return nil, fmt.Errorf("manifest: %d bytes, more than the %d allowed", len(b), MaxManifestBytes)
	}
	if err := checkFormat(b); err != nil {
		return nil, err
	}
	m, err := decodeStrict(b)
	if err != nil {
		return nil, err
	}
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	same := &comparison{rest: b}
	if err := writeWire(same, m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if same.differ || len(same.rest) > 0 {
		return nil, errors.New("manifest: not in its canonical form: it was not written by hotdeploy, or was changed since")
	}
	return m, nil
}

// checkFormat comes before everything else: a newer manifest is told as such, not by the first field that is unknown.
func checkFormat(b []byte) error {
	var f struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	if f.Format > Format {
		return fmt.Errorf("%w (%d; this hotdeploy reads up to %d): update hotdeploy here; on a host with  hotdeploy setup HOST",
			ErrNewerFormat, f.Format, Format)
	}
	return nil
}

func decodeStrict(b []byte) (*Manifest, error) {
	m, err := readWire(bytes.NewReader(b))
	if err != nil && strings.Contains(err.Error(), "unknown field") {
		return nil, fmt.Errorf("manifest: %s: made by a newer hotdeploy? update hotdeploy here", strings.TrimPrefix(err.Error(), "json: "))
	}
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return m, nil
}

// Digest is the lower-case hex SHA-256 of b.
func Digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
