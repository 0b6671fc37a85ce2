// Command wslive is an app that takes its listener from the SDK: it answers as wsecho does, and its WebSockets go on in the next release, counter
// and all. It shows how little that takes: main is the README's lines, echo saves one number. A browser gets a page that holds one
// connection (live.go) and shows how it is.
//
// Read main first.
package main

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/gorilla/websocket"

	"github.com/hotdeploy/hotdeploy/upgrade"
)

func main() {
	up, err := upgrade.New(options())
	if err != nil {
		log.Fatal(err)
	}
	ln, err := up.Listen(cmp.Or(os.Getenv("WSLIVE_NETWORK"), "tcp"), cmp.Or(os.Getenv("WSLIVE_ADDRESS"), "127.0.0.1:8080"))
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: signed(routes()), ReadHeaderTimeout: 30 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { log.Fatal(server.Serve(ln)) }()
	if err := datagrams(up); err != nil {
		log.Fatal(err)
	}
	if err := up.Ready(); err != nil {
		log.Fatal(err)
	}
	log.Printf("version %s serving on %s", version, ln.Addr())
	misbehave()
	<-up.Exit()
	log.Printf("version %s has nothing left", version)
}

// buildMark is the version where nobody else says it; linked in.
var buildMark = ""

var version = cmp.Or(os.Getenv("HOTDEPLOY_VERSION"), buildMark)

func options() upgrade.Options {
	timeout, _ := time.ParseDuration(os.Getenv("WSLIVE_UPGRADE_TIMEOUT"))
	patience, _ := time.ParseDuration(os.Getenv("WSLIVE_PATIENCE"))
	return upgrade.Options{
		States: versions(), Mode: upgrade.Mode(os.Getenv("WSLIVE_MODE")), Patience: patience, Log: log.Printf,
		Standalone: upgrade.Standalone{PIDFile: os.Getenv("WSLIVE_PIDFILE"), UpgradeTimeout: timeout, KeepPID: os.Getenv("WSLIVE_KEEP_PID") != ""},
	}
}

// stateVersion is what echo saves; a test may ask for another one.
var stateVersion = number("WSLIVE_STATE", 1)

// versions is what this release can read: its own, and what a test asks for.
func versions() []uint32 {
	return []uint32{uint32(stateVersion), uint32(number("WSLIVE_READS", stateVersion))}
}

func number(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// misbehave ends the process by the clock if the release asks for it.
func misbehave() {
	if d, err := time.ParseDuration(os.Getenv("WSLIVE_EXIT_AFTER")); err == nil {
		time.AfterFunc(d, func() {
			log.Print("told to exit")
			os.Exit(4)
		})
	}
}

func routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, version) })
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if os.Getenv("WSLIVE_UNHEALTHY") != "" {
			http.Error(w, "unhealthy: told to be", http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("GET /slow", func(w http.ResponseWriter, r *http.Request) {
		if name := os.Getenv("WSLIVE_SLOW_WHILE"); name != "" {
			slowWhile(w, r, name)
			return
		}
		d, _ := time.ParseDuration(r.URL.Query().Get("for"))
		select {
		case <-time.After(min(d, time.Minute)):
			io.WriteString(w, "slow but there\n")
		case <-r.Context().Done():
			log.Print("the context of a slow request has ended")
		}
	})
	mux.HandleFunc("GET /self", func(w http.ResponseWriter, _ *http.Request) { // after it has thrown away what it can
		debug.FreeOSMemory()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		json.NewEncoder(w).Encode(map[string]uint64{"goroutines": uint64(runtime.NumGoroutine()), "heap": m.HeapAlloc})
	})
	mux.HandleFunc("GET /ws", echo)
	mux.HandleFunc("GET /live", live)
	mux.HandleFunc("GET /{$}", sendPage)
	return mux
}

// slowWhile makes a file, so that whoever asks knows that the request has begun, and works on it for as long as the file is there.
func slowWhile(w http.ResponseWriter, r *http.Request, name string) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f.Close()
	for ; err == nil; _, err = os.Stat(name) {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-r.Context().Done():
			log.Print("the context of a slow request has ended")
			return
		}
	}
	io.WriteString(w, "slow but there\n")
}

func signed(next http.Handler) http.Handler {
	pid := strconv.Itoa(os.Getpid())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Generation", os.Getenv("HOTDEPLOY_GENERATION"))
		w.Header().Set("X-Pid", pid)
		next.ServeHTTP(w, r)
	})
}

var upgrader = websocket.Upgrader{ReadBufferSize: 1024, WriteBufferSize: 1024}

// saved is the counter as version 1 of the state has it, eight bytes, or as the others do, in digits.
func saved(version uint32, n uint64) []byte {
	if version == 1 {
		return binary.BigEndian.AppendUint64(nil, n)
	}
	return strconv.AppendUint(nil, n, 10)
}

func count(version uint32, state []byte) (n uint64) {
	if version == 1 && len(state) == 8 {
		return binary.BigEndian.Uint64(state)
	}
	n, _ = strconv.ParseUint(string(state), 10, 64)
	return n
}

// answer is what each text message gets back.
type answer struct {
	N    uint64 `json:"n"`
	V    string `json:"v"`
	Pid  int    `json:"pid"`
	Echo string `json:"echo"`
}

// echo is an ordinary handler but for its first lines: the counter goes along to the next release.
func echo(w http.ResponseWriter, r *http.Request) {
	reply := answer{V: version, Pid: os.Getpid()}
	s := upgrade.SessionOf(r.Context())
	if s.Resumed() && os.Getenv("WSLIVE_REFUSE") != "" {
		http.Error(w, "told to refuse", http.StatusForbidden)
		return
	}
	reply.N = count(s.State())
	s.Save(uint32(stateVersion), func() ([]byte, error) { return saved(uint32(stateVersion), reply.N), nil })
	conn, err := upgrader.Upgrade(w, r, w.Header())
	if err != nil {
		return
	}
	defer conn.Close()
	for {
		_, text, err := conn.ReadMessage()
		if err != nil {
			return
		}
		reply.N++
		reply.Echo = string(text)
		out, err := json.Marshal(reply)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
		if conn.WriteMessage(websocket.TextMessage, out) != nil {
			return
		}
	}
}
