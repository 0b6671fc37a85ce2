package libtest

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	ctl "github.com/hotdeploy/hotdeploy/upgrade/control"
)

var (
	messageFlag = flag.Int64("messages", 100_000, "for each library, at least")
	handoffFlag = flag.Int("handoffs", 24, "for each library, at least")
	seedFlag    = flag.Uint64("seed", uint64(time.Now().UnixNano()), "of everything that is random")
)

// story has clients talk while releases come and go.
type story struct {
	releases func(n int) release // of deploy n; 0 is the first to serve
	clients  []guest
	messages int64 // in all, at least
	handoffs int
	back     int      // each so many-th deploy is taken back; 0: none
	may      []string // reasons to stay that are in order
	patience time.Duration
	seed     uint64
}

// guest is somebody who comes to a site.
type guest interface {
	// call is one connection, to its end.
	call(x *teller, rng *rand.Rand) error
	// again says that another follows it, until the story ends.
	again() bool
}

// teller is a story under way.
type teller struct {
	story
	site   *site
	rng    *rand.Rand
	stop   chan struct{}  // closed when clients are to leave
	left   sync.WaitGroup // clients that are there
	joined sync.WaitGroup // members that are still to come
	tally  tally
	given  outcome
	failed chan struct{} // closed with the first problem

	mu       sync.Mutex // protects what follows
	problems []string
}

// outcome adds up what generations say.
type outcome struct {
	handoffs, moved, most int
	kept                  map[string]int
	longest               time.Duration
}

// tally counts answers.
type tally struct {
	mu      sync.Mutex // protects what follows
	n, goal int64
	reached chan struct{} // closed when n has come to goal
	over    bool
}

func (x *tally) add() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.n++; x.n == x.goal && !x.over {
		close(x.reached)
	}
}

// fail lets nobody wait any more.
func (x *tally) fail() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.over && x.n < x.goal {
		close(x.reached)
	}
	x.over = true
}

// after returns a channel that is closed when there were n more.
func (x *tally) after(n int64) <-chan struct{} {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.goal, x.reached = x.n+max(1, n), make(chan struct{})
	if x.over {
		x.goal = x.n
		close(x.reached)
	}
	return x.reached
}

// tell runs the story; a problem is a failure.
func (s story) tell(t *testing.T) *teller {
	t.Helper()
	s.seed = *seedFlag
	began := time.Now()
	x, err := s.run(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range x.problems {
		t.Error(p)
	}
	t.Logf("%d messages, %d handoffs, %d connections moved, kept %v, longest pause %s, in %s", x.tally.count(), x.given.handoffs, x.given.moved, x.given.kept, x.given.longest, time.Since(began).Round(time.Millisecond))
	if x.given.moved == 0 {
		t.Error("no connection has moved")
	}
	if t.Failed() {
		t.Logf("again: go test -run '%s' -seed %d", t.Name(), s.seed)
	}
	return x
}

// run tells a story to its end, or to its first problem. The error is one of the test itself.
func (s story) run(dir string) (*teller, error) {
	x := &teller{story: s, rng: rand.New(rand.NewPCG(s.seed, 1<<32)), stop: make(chan struct{}), failed: make(chan struct{})}
	x.given.kept = map[string]int{}
	if x.patience == 0 {
		x.patience = patience
	}
	var err error
	if x.site, err = newSite(dir); err != nil {
		return x, err
	}
	defer x.site.close()
	if _, err := x.site.deploy(s.releases(0)); err != nil {
		return x, err
	}
	x.joined.Add(len(s.clients))
	for i, g := range s.clients {
		x.left.Go(func() { x.visit(i, g) })
	}
	for n := 1; x.given.handoffs < s.handoffs && x.calm(); n++ {
		x.deploy(n)
	}
	x.await(s.messages - x.tally.count())
	close(x.stop)
	x.left.Wait()
	x.site.term(x.site.serving)
	x.site.serving = nil
	if x.calm() {
		x.check("the end", x.site.settle(x.patience))
	}
	return x, nil
}

// deploy is one deploy, which may be taken back.
func (x *teller) deploy(n int) {
	pace := (x.messages - x.tally.count()) / int64(max(1, x.handoffs-x.given.handoffs))
	if x.await(pace / 2); !x.calm() {
		return
	}
	r := x.releases(n)
	if r.fail != "" {
		m, err := x.site.fail(r)
		x.check(fmt.Sprintf("deploy %d, in which the next release dies", n), err)
		x.add(n, m)
	} else if x.back > 0 && n%x.back == 0 {
		to, back, err := x.site.try(r, func() { x.await(pace) })
		x.check(fmt.Sprintf("deploy %d, which is taken back", n), err)
		x.add(n, to)
		x.add(n, back)
	} else {
		m, err := x.site.deploy(r)
		x.check(fmt.Sprintf("deploy %d", n), err)
		x.add(n, m)
	}
	x.check("a generation's end", x.site.reap())
	x.given.most = max(x.given.most, len(x.site.draining))
	x.await(pace / 2)
}

func (x *tally) count() int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.n
}

// await waits for so many more answers.
func (x *teller) await(n int64) {
	if n <= 0 {
		return
	}
	select {
	case <-x.tally.after(n):
	case <-x.failed:
	}
}

// strained are reasons of a machine with too much to do: an app did not come to its turn in time, and its connection goes on where it was.
var strained = []string{"busy", "handler stuck", "slow to accept", "not settled yet", "too late"}

// add notes what a handoff came to.
func (x *teller) add(n int, m ctl.Message) {
	x.given.handoffs++
	x.given.moved += m.Moved
	x.given.longest = max(x.given.longest, time.Duration(m.LongestPauseUS)*time.Microsecond)
	if m.Error != "" && !slices.Contains(x.may, m.Error) || m.PeerHangs {
		x.problem("deploy %d: %s", n, m.Error)
	}
	for why, k := range m.Kept {
		x.given.kept[why] += k
		if !slices.Contains(x.may, why) && !slices.Contains(strained, why) {
			x.problem("deploy %d: %d connections stayed: %s", n, k, why)
		}
	}
}

// visit is one client; one that ends its connections comes again.
func (x *teller) visit(i int, g guest) {
	rng := rand.New(rand.NewPCG(x.seed, uint64(i)))
	for n := 0; ; n++ {
		if err := g.call(x, rng); err != nil {
			x.problem("client %d (%+v), connection %d: %v", i, g, n, err)
			return
		}
		select {
		case <-x.stop:
			return
		case <-x.failed:
			return
		default:
		}
		if !g.again() {
			return
		}
	}
}

func (h hostile) again() bool { return h.end != stays }

func (h hostile) call(x *teller, rng *rand.Rand) error {
	c, err := x.dial(h, rng)
	if err != nil {
		return err
	}
	defer close(c.over)
	return c.talk(x.leaving(h))
}

// dial opens a WebSocket. Close over when the connection is.
func (x *teller) dial(h hostile, rng *rand.Rand) (*client, error) {
	c, err := dial(x.site.addr, h, rng)
	if err != nil {
		return nil, err
	}
	go func() {
		select {
		case <-c.over:
		case <-x.failed: // what is still to come tells nothing
			c.conn.Close()
		}
	}()
	c.answer, c.patience = x.tally.add, x.patience
	if err := c.open(); err != nil {
		close(c.over)
		c.conn.Close()
		return nil, err
	}
	return c, nil
}

// leaving tells a client when to end: those that do that in odd ways do it when connections move.
func (x *teller) leaving(h hostile) <-chan struct{} {
	if h.end == stays {
		return x.stop
	}
	either := make(chan struct{})
	moving := x.site.begins()
	go func() {
		defer close(either)
		select {
		case <-moving:
		case <-x.stop:
		}
	}()
	return either
}

func (x *teller) check(what string, err error) {
	if err != nil {
		x.problem("%s: %v", what, err)
	}
}

func (x *teller) calm() bool {
	select {
	case <-x.failed:
		return false
	default:
		return true
	}
}

// problem notes what is wrong. After the first everything is ended, so that more of them tell nothing.
func (x *teller) problem(format string, args ...any) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.problems) > 0 {
		return
	}
	x.problems = append(x.problems, fmt.Sprintf(format, args...)+"\n"+x.site.log())
	close(x.failed)
	x.site.kill()
}

// The kinds of clients.
var (
	small  = hostile{ahead: 64}
	torn   = hostile{largest: 20_000, cut: 3000, ahead: 4}
	single = hostile{cut: 2, ahead: 3}
	slow   = hostile{largest: 3 << 20, pace: 50 * time.Millisecond, stall: 200 * time.Millisecond, buffer: 16 << 10, quiet: true, ahead: 3}
	huge   = hostile{largest: 8 << 20, pace: 200 * time.Millisecond, quiet: true, ahead: 2}
	packed = hostile{compress: true, largest: 20_000, cut: 3000, ahead: 4}
)

// fleet is one of each kind of client, and more of those that make the numbers.
func fleet() []guest {
	list := []guest{single, slow, slow, huge, packed, packed}
	for range 6 {
		list = append(list, small)
	}
	for _, e := range []ending{closes, asks, halves} {
		leaving := torn
		leaving.end, leaving.before = e, 2
		list = append(list, torn, leaving)
	}
	return list
}

// libraries are what app knows.
var libraries = []string{"gorilla", "coder", "gobwas", "gws"}

// modes alternate.
func mode(n int) string { return []string{"rolling", "barrier"}[n/2%2] }

// TestDeploys_NoMessageIsLost: the driver's main story, for each library.
func TestDeploys_NoMessageIsLost(t *testing.T) {
	for _, library := range libraries {
		t.Run(library, func(t *testing.T) {
			story{
				releases: func(n int) release { return release{app: app(t), library: library, deflate: true, mode: mode(n)} },
				clients:  fleet(), messages: *messageFlag, handoffs: *handoffFlag, back: 4,
				may: []string{"closing", "closed", "too much unsent"},
			}.tell(t)
		})
	}
}

// TestDeploys_FromOneLibraryToAnother: a release may change its mind, also with compression.
func TestDeploys_FromOneLibraryToAnother(t *testing.T) {
	var all []string // each after each other
	for i, from := range libraries {
		for _, to := range libraries[i+1:] {
			all = append(all, from, to, from)
		}
	}
	story{
		releases: func(n int) release {
			return release{app: app(t), library: all[n%len(all)], deflate: true, mode: mode(n)}
		},
		clients: []guest{torn, torn, packed, packed}, messages: 1500, handoffs: len(all),
	}.tell(t)
}

// TestDeploys_CompressionComesAndGoes: a connection with compression does not move to a release without; it stays, and goes on. All others
// move.
func TestDeploys_CompressionComesAndGoes(t *testing.T) {
	brief := packed
	brief.end = closes
	for _, library := range libraries {
		t.Run(library, func(t *testing.T) {
			t.Parallel()
			x := story{
				releases: func(n int) release { return release{app: app(t), library: library, deflate: n%2 == 0, mode: mode(n)} },
				clients:  []guest{torn, packed, brief, brief}, messages: 600, handoffs: 6, back: 3,
				may: []string{"refused", "closing", "closed"},
			}.tell(t)
			if x.given.kept["refused"] == 0 {
				t.Error("a connection with compression was taken by a release without")
			}
		})
	}
}

// TestDeploys_NextReleaseDies: wherever it has come to in taking, the old one goes on as if nothing had been.
func TestDeploys_NextReleaseDies(t *testing.T) {
	breaking, err := build("breaking", raced, "-tags", "failpoints")
	if err != nil {
		t.Fatal(err)
	}
	steps := []string{"take.begin", "take.offer", "take.adopted", "take.accepted"}
	for _, library := range libraries {
		t.Run(library, func(t *testing.T) {
			t.Parallel()
			story{
				releases: func(n int) release {
					r := release{app: breaking, library: library, deflate: true, mode: mode(n)}
					if n%5 > 0 {
						r.fail = steps[n%5-1] + "=kill"
					}
					return r
				},
				clients: []guest{small, torn, torn, packed}, messages: 2000, handoffs: 10,
				may: []string{"next release ended", "the next release ended", "shared state"},
			}.tell(t)
		})
	}
}
