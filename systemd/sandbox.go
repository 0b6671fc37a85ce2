package systemd

import (
	"path/filepath"
	"strings"
)

// sandboxGroups is as tight as real apps bear, rated by `systemd-analyze security`.
// What is not here, and why:
//
//   - MemoryDenyWriteExecute: V8, the JVM and others compile at run time.
//   - RestrictNamespaces: it takes clone3 away as a whole (ENOSYS), and a
//     generation is born into its cgroup by clone3. Where it joins by itself
//     before it executes the app, this is worth 0.7.
//   - ProcSubset=pid: runtimes size themselves by /proc/meminfo and
//     /proc/cpuinfo, Go's listen queue by /proc/sys/net/core/somaxconn.
//   - PrivateUsers: every peer of the control socket would look like nobody,
//     and a capability would be worth nothing on the host's network.
//   - RemoveIPC: it takes shared memory away from generations that outlive
//     their supervisor.
//   - PrivateTmp: so does it with their files, whenever the supervisor is
//     restarted. The service's own tmp folder is in its place.
func sandboxGroups(spec UnitSpec) []group {
	capabilities := strings.Join(uniqueCapabilities(spec), " ")
	privileges := []option{
		{"NoNewPrivileges", "yes"},
		{"CapabilityBoundingSet", capabilities},
	}
	if capabilities != "" {
		privileges = append(privileges, option{"AmbientCapabilities", capabilities})
	}
	tmp := "-" + escapePercent(filepath.Join(spec.Root, tmpFolder))
	return []group{
		{"No more rights than the work takes.", append(privileges,
			option{"RestrictSUIDSGID", "yes"},
			option{"RestrictRealtime", "yes"},
			option{"LockPersonality", "yes"},
		)},
		{"It writes below its root and into its own cgroup, and nowhere else.", append(
			writablePaths(spec),
			option{"ProtectSystem", "strict"},
			option{"ProtectHome", "yes"},
			option{"BindPaths", tmp + ":/tmp " + tmp + ":/var/tmp"},
			option{"PrivateDevices", "yes"},
			option{"PrivateMounts", "yes"},
			option{"ProtectProc", "invisible"},
			option{"ProtectControlGroups", "yes"},
			option{"ProtectKernelTunables", "yes"},
			option{"ProtectKernelModules", "yes"},
			option{"ProtectKernelLogs", "yes"},
			option{"ProtectClock", "yes"},
			option{"ProtectHostname", "yes"},
		)},
		{"Netlink is for counting connections.", []option{
			{"RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK"},
		}},
		{"What it may not call fails with EPERM and is not fatal. A chown to oneself is harmless and\n" +
			"often done (gunicorn, tar); pidfd_getfd takes a socket back from a generation.", []option{
			{"SystemCallArchitectures", "native"},
			{"SystemCallErrorNumber", "EPERM"},
			{"SystemCallFilter", "@system-service"},
			{"SystemCallFilter", "~@privileged @resources"},
			{"SystemCallFilter", "@chown pidfd_getfd"},
		}},
	}
}

func uniqueCapabilities(spec UnitSpec) []string {
	if len(spec.Capabilities) == 0 {
		return nil
	}
	return []string{capNetBindService} // Validate let nothing else through
}

// writablePaths: a path with "-" may be missing. The cgroup is missing where
// a drop-in moves the unit to another slice; the supervisor copes.
func writablePaths(spec UnitSpec) []option {
	paths := []option{
		{"ReadWritePaths", escapePercent(spec.Root)},
		{"ReadWritePaths", "-/sys/fs/cgroup/system.slice/" + serviceUnitName(spec)},
	}
	for _, p := range spec.ReadWritePaths {
		paths = append(paths, option{"ReadWritePaths", "-" + escapePercent(p)})
	}
	return paths
}
