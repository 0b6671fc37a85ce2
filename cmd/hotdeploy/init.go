package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/internal/config"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

func (a *app) initCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "init",
		Short: "Write a commented hotdeploy.toml",
		Long: `Init writes hotdeploy.toml for the app in this folder, with what it can tell of it: every setting is there with its default and a
word on what it means. A file that is there already is left alone.

Exit status: 0 done, 2 usage or it is there already, 3 it could not be written.`,
		Example: `  hotdeploy init
  hotdeploy init --service chat`,
		Args: cobra.NoArgs,
		RunE: runs(func(*cobra.Command, []string) error {
			path := a.configFile
			if path == "" {
				path = config.FileName
			}
			return a.writeTemplate(path)
		}),
	}
}

func (a *app) writeTemplate(path string) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	service := a.service
	if service == "" {
		service = config.ServiceName(filepath.Dir(abs))
	}
	if err := release.CheckService(service); err != nil {
		return &usageError{fmt.Errorf("service %q: %w", service, err), "name it with  --service NAME"}
	}
	text, err := config.TemplateFor(service, filepath.Dir(abs))
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return &usageError{fmt.Errorf("%s is there already", path), "change it, or remove it first"}
	}
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	a.answer.wanted, a.answer.Path = true, path
	fmt.Fprintf(a.stderr, "wrote %s for the service %s; next: read it, then  hotdeploy setup HOST\n", path, service)
	return nil
}
