//go:build failpoints

package main

import (
	"os"

	"github.com/hotdeploy/hotdeploy/internal/failpoint"
)

func init() { failpoint.Arm(os.Getenv(failpoint.Env)) }
