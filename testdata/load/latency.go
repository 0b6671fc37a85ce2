package load

import (
	"slices"
	"sync"
	"time"
)

// Latency is a distribution of times from dial to the end of the answer.
type Latency struct {
	Count   int           `json:"count"`
	P50     time.Duration `json:"p50_ns"`
	P90     time.Duration `json:"p90_ns"`
	P99     time.Duration `json:"p99_ns"`
	Slowest time.Duration `json:"slowest_ns"`
}

// sample is one answered request.
type sample struct{ at, took time.Duration } // at: since Start

// samples keeps each one, 16 bytes per request.
type samples struct {
	mu  sync.Mutex // protects all
	all []sample
}

func (s *samples) add(at, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, sample{at, took})
}

// between summarises the requests that began in [from, to).
func (s *samples) between(from, to time.Duration) Latency {
	s.mu.Lock()
	var took []time.Duration
	for _, one := range s.all {
		if one.at >= from && one.at < to {
			took = append(took, one.took)
		}
	}
	s.mu.Unlock()
	return distribution(took)
}

// distribution sorts took in place.
func distribution(took []time.Duration) Latency {
	if len(took) == 0 {
		return Latency{}
	}
	slices.Sort(took)
	// Nearest rank: the smallest that at least this share does not exceed.
	rank := func(percent int) time.Duration { return took[(len(took)*percent+99)/100-1] }
	return Latency{Count: len(took), P50: rank(50), P90: rank(90), P99: rank(99), Slowest: took[len(took)-1]}
}
