package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"
)

func (a *app) packCommand() *cobra.Command {
	var version, output string
	cmd := &cobra.Command{
		Use:   "pack",
		Short: "Pack the project into a release, without sending it anywhere",
		Long: `Pack writes a release as a folder: a manifest with the digest of every file, and the files. The same input gives the same digest. Push
sends it with --release.

Exit status: 0 done, 2 usage, 3 nothing was written.`,
		Example: `  hotdeploy pack
  hotdeploy pack --version 1.4.2 --output /tmp/chat-1.4.2
  hotdeploy push web-1 --release /tmp/chat-1.4.2`,
		Args: cobra.NoArgs,
		RunE: runs(func(cmd *cobra.Command, _ []string) error {
			p, err := a.project()
			if err != nil {
				return err
			}
			rel, err := a.pack(cmd.Context(), p, version)
			if err != nil {
				return err
			}
			if output == "" {
				output = filepath.Join(p.Dir, ".hotdeploy", rel.Manifest.Service+"-"+rel.Manifest.Version)
			}
			if err := rel.WriteTo(cmd.Context(), output); err != nil {
				return err
			}
			a.answer.wanted, a.answer.Path = true, output
			a.answer.Release = &packedAnswer{rel.Manifest.Version, rel.Digest, rel.TotalBytes(), len(rel.Manifest.Files)}
			fmt.Fprintf(a.stderr, "packed %s %s: %s, %s, digest %.12s\n", p.Service, rel.Manifest.Version,
				count(len(rel.Manifest.Files), "file"), size(rel.TotalBytes()), rel.Digest)
			if !a.json {
				fmt.Fprintln(a.stdout, output)
			}
			return nil
		}),
	}
	cmd.Flags().StringVar(&version, "version", "", "the release's version (default: what git says)")
	cmd.Flags().StringVarP(&output, "output", "o", "", "the folder to write (default: .hotdeploy/SERVICE-VERSION in the project)")
	return cmd
}
