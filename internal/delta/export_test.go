package delta

import "testing"

// SetSizes makes segments and windows of other sizes for one test.
func SetSizes(t *testing.T, segment, window int64) {
	s, w := segmentSize, windowSize
	t.Cleanup(func() { segmentSize, windowSize = s, w })
	segmentSize, windowSize = segment, window
}
