//go:build failpoints

package upgrade

import points "github.com/hotdeploy/hotdeploy/upgrade/internal/failpoint"

func init() { failpoint = points.FromEnv() }
