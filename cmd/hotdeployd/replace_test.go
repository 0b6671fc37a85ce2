package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/supervisor"
)

// Setup holds locks of the whole host meanwhile, and the daemon is another user's.
func TestReplace_DaemonThatIsThereButNeverMakesWay_IsNotWaitedForForEver(t *testing.T) {
	dir := t.TempDir()
	sock, err := net.Listen("unix", supervisor.ControlSocket(dir))
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{}, 1)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			fmt.Fprint(w, "{}")
			return
		}
		asked <- struct{}{}
		<-t.Context().Done()
	})}
	go server.Serve(sock)
	t.Cleanup(func() { server.Close() })
	err = replaceDaemon(t.Context(), dir, 300*time.Millisecond)
	if !errors.Is(err, context.DeadlineExceeded) || len(asked) != 1 {
		t.Errorf("%v, asked %d times", err, len(asked))
	}
}
