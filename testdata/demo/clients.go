package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hotdeploy/hotdeploy/testdata/load"
)

// tell says how the clients are, when each has had an answer to something that it said from now on.
func tell(ctx context.Context, clients *load.Load) error {
	if err := clients.Beat(ctx); err != nil {
		return err
	}
	r := clients.Snapshot()
	fmt.Printf("  clients: %d of %d WebSockets open, served by %s · %d messages echoed · %d requests answered\n",
		r.Kept, r.Total, releases(r), r.MessagesEchoed, r.RequestsOK)
	return nil
}

// releases says which of them answered the WebSockets last.
func releases(r load.Report) string {
	var list []string
	for _, v := range slices.Sorted(maps.Keys(r.Versions)) {
		list = append(list, "release "+v)
	}
	return strings.Join(list, " and ")
}

// judge ends the clients. The last line is theirs.
func judge(ctx context.Context, clients *load.Load) error {
	r := clients.Stop(ctx)
	fmt.Printf("\nconnections kept %d/%d · moved %d · messages lost %d · requests failed %d\n",
		r.Kept, r.Total, r.Changed, r.MessagesLost+r.MessagesDue, r.RequestsFailed+r.RequestsDue)
	if err := r.Err(); err != nil {
		return err
	}
	if r.Changed != webSockets || r.Versions["2"] != webSockets {
		return fmt.Errorf("all %d WebSockets should have moved, and be with release 2 in the end: %d moved, %v", webSockets, r.Changed, r.Versions)
	}
	return nil
}
