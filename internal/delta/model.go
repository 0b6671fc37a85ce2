package delta

// Probabilities are of a 1, in 16 bits. All is in integers: both sides must come to the same on any processor.

// prob is an adaptive probability in its upper bits; the lowest count how often it was seen, so that it learns fast at first. Zero is
// a half, so that a table costs nothing where it is not used.
type prob uint32

const (
	probBits  = 22
	evenly    = 1 << 31
	countMask = 1<<(32-probBits) - 1
)

// rates are the shares of the error by which a probability moves, by how often it was seen: 1/2, 1/3, … in 16 bits.
var rates = func() (r [countMask + 1]uint32) {
	for i := range r {
		r[i] = 65536 / (uint32(i) + 2)
	}
	return r
}()

// of is p in 32 bits.
func (p prob) of() uint32 { return uint32(p) ^ evenly }

// update moves p towards bit; limit bounds how slowly.
func (p *prob) update(bit int, limit uint32) {
	n := uint32(*p) & countMask
	v := int64(p.of() >> (32 - probBits))
	target := int64(0)
	if bit != 0 {
		target = 1<<probBits - 1
	}
	v += (target - v) * int64(rates[n]) >> 16
	if n < limit {
		n++
	}
	*p = prob((uint32(v)<<(32-probBits) | n) ^ evenly)
}

// logistic has 65536 / (1 + exp(-x/2)) for x from -24 to 24.
var logistic = [49]int32{
	1, 1, 1, 2, 3, 5, 8, 13, 22, 36,
	60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971,
	7812, 11955, 17625, 24743, 32768, 40793, 47911, 53581, 57724, 60565,
	62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438, 65476, 65500,
	65514, 65523, 65528, 65531, 65533, 65534, 65535, 65535, 65535,
}

const (
	stretchOne = 256               // ln(p/(1-p)) = 1
	stretchMax = 12*stretchOne - 1 // and no more
)

// squash is the probability of a stretched one.
func squash(x int32) uint32 {
	x = min(max(x, -stretchMax), stretchMax) + 12*stretchOne
	i, part := x/(stretchOne/2), x%(stretchOne/2)
	p := logistic[i] + (logistic[i+1]-logistic[i])*part/(stretchOne/2)
	return uint32(min(max(p, 4), 65536-4))
}

// stretched is the inverse of squash by the upper 12 bits.
var stretched = func() (t [4096]int16) {
	x := int32(-stretchMax)
	for i := range t {
		for x < stretchMax && squash(x) < uint32(i)<<4+8 {
			x++
		}
		t[i] = int16(x)
	}
	return t
}()

// mixer weighs what several models say, and learns whom to believe.
type mixer struct {
	weights []int32 // inputs for each context; 65536 is one
	inputs  int
	in      [8]int32
	probs   [8]*prob
	n       int
}

func newMixer(inputs, contexts int) *mixer {
	m := &mixer{weights: make([]int32, inputs*contexts), inputs: inputs}
	for i := range m.weights {
		m.weights[i] = 65536 * 2 / int32(inputs+1)
	}
	return m
}

func (m *mixer) add(p *prob) {
	m.probs[m.n] = p
	m.in[m.n] = int32(stretched[p.of()>>20])
	m.n++
}

// code codes a bit as the models that were added see it in a context.
func (m *mixer) code(c *coder, context int, limit uint32, bit int) int {
	w := m.weights[context*m.inputs : context*m.inputs+m.n]
	var sum int64
	for i := range w {
		sum += int64(w[i]) * int64(m.in[i])
	}
	p := squash(int32(sum >> 16))
	bit = c.code(p, bit)
	miss := -int32(p)
	if bit != 0 {
		miss += 65536
	}
	for i := range w {
		w[i] += (m.in[i]*(miss>>2) + 1<<13) >> 14
		m.probs[i].update(bit, limit)
	}
	m.n = 0
	return bit
}

// simple codes a bit by one probability alone.
func (c *coder) simple(p *prob, bit int) int {
	v := min(max(p.of()>>16, 16), 65536-16)
	bit = c.code(v, bit)
	p.update(bit, 126)
	return bit
}

// tree codes the lowest bits of v, the highest first, by a table of 1<<bits probabilities.
func (c *coder) tree(t []prob, bits int, v uint32) uint32 {
	node := uint32(1)
	for i := bits - 1; i >= 0; i-- {
		node = node<<1 | uint32(c.simple(&t[node], int(v>>i&1)))
	}
	return node - 1<<bits
}

// number codes numbers of any size, small ones best.
type number struct {
	length []prob
	upper  []prob
}

func newNumber() number { return number{make([]prob, 128), make([]prob, 64*4)} }

func (n number) code(c *coder, v uint64) uint64 {
	bits := 0
	for x := v; x > 0; x >>= 1 {
		bits++
	}
	bits = int(c.tree(n.length, 7, uint32(bits)))
	if bits > 64 {
		bits = 0
		if c.err == nil {
			c.err = ErrMalformed
		}
	}
	out := uint64(0)
	for i := bits - 1; i >= 0; i-- {
		bit := int(v >> i & 1)
		switch {
		case i == bits-1:
			bit = 1
		case i >= bits-3:
			bit = c.simple(&n.upper[(bits-1)*4+(bits-2-i)*2+int(out&1)], bit)
		default:
			bit = c.code(1<<15, bit)
		}
		out = out<<1 | uint64(bit)
	}
	return out
}

// signed codes numbers around zero.
func (n number) signed(c *coder, v int64) int64 {
	u := n.code(c, uint64(v)<<1^uint64(v>>63))
	return int64(u>>1) ^ -int64(u&1)
}
