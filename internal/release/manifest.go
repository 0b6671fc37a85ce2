package release

// Format is the manifest form that this code writes; it refuses newer ones.
const Format = 1

// ManifestName is the manifest's file name in a release directory, FilesDir the directory beside it that holds the files.
const (
	ManifestName = "manifest.json"
	FilesDir     = "files"
)

// Limits on what is read from outside. A manifest beyond them is refused, not cut.
const (
	MaxManifestBytes = 32 << 20
	MaxFiles         = 100_000
	MaxPathBytes     = 1024
)

// Manifest is the content of manifest.json. It holds no times and no names of machines or people, so that the same
// input gives the same bytes.
type Manifest struct {
	Format   int    `json:"format"`
	Service  string `json:"service"`
	Version  string `json:"version"`
	Platform        // what the ELF files in it were built for; empty: any
	// Interpreters are what the start command needs on the host, from its #! line: an absolute path or a name in PATH.
	Interpreters []string `json:"interpreters,omitempty"`
	Spec         Spec     `json:"spec"`
	Files        []File   `json:"files"` // sorted by path, directories are implied
}

// Platform is an operating system and an architecture in Go's words (linux, amd64).
type Platform struct {
	OS   string `json:"os,omitempty"`
	Arch string `json:"arch,omitempty"`
}

// File is one regular file or one symlink of a release. Names are what the kernel takes: any bytes but NUL.
type File struct {
	Path   string `json:"path,omitempty"`   // slash-separated, relative to files/
	Mode   uint32 `json:"mode,omitempty"`   // permission bits: 0o755 or 0o644; zero for a symlink
	Size   int64  `json:"size,omitempty"`   // bytes
	SHA256 string `json:"sha256,omitempty"` // lower-case hex of the content; empty for a symlink
	Link   string `json:"link,omitempty"`   // symlink target, relative, inside the release
}

// Ref names a release.
type Ref struct {
	Version string `json:"version"`
	Digest  string `json:"digest"` // lower-case hex SHA-256 of the manifest's bytes
}
