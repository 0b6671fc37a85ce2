package main

import (
	"compress/flate"
	"io"
	"net"
	"net/http"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsflate"
	"github.com/gobwas/ws/wsutil"
)

// gobwasEcho uses a library of parts: compression has to be put together by the app.
func gobwasEcho(compress bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var deflate wsflate.Extension
		deflate.Parameters = wsflate.DefaultParameters
		u := ws.HTTPUpgrader{}
		if compress {
			u.Negotiate = deflate.Negotiate
		}
		c, _, _, err := u.Upgrade(r, w)
		if err != nil {
			return
		}
		defer c.Close()
		count := newCounter(r)
		if _, ok := deflate.Accepted(); ok {
			echoDeflated(c, count)
			return
		}
		for {
			p, op, err := wsutil.ReadClientData(c)
			if err != nil {
				tell(r, err)
				return
			}
			b, bye := count.answer(p)
			if wsutil.WriteServerMessage(c, op, b) != nil || bye && sayGoodbye(c) != nil {
				return
			}
		}
	}
}

func sayGoodbye(c net.Conn) error {
	return ws.WriteFrame(c, ws.NewCloseFrame(ws.NewCloseFrameBody(closeCode, "")))
}

// echoDeflated is the loop with compression.
func echoDeflated(c net.Conn, count *counter) {
	var state wsflate.MessageState
	control := wsutil.ControlFrameHandler(c, ws.StateServerSide)
	in := wsutil.Reader{Source: c, State: ws.StateServerSide | ws.StateExtended, OnIntermediate: control, Extensions: []wsutil.RecvExtension{&state}}
	inflate := wsflate.NewReader(nil, func(r io.Reader) wsflate.Decompressor { return flate.NewReader(r) })
	for {
		h, err := in.NextFrame()
		if err != nil {
			return
		}
		if h.OpCode.IsControl() {
			if control(h, &in) != nil {
				return
			}
			continue
		}
		src := io.Reader(&in)
		if state.IsCompressed() {
			inflate.Reset(&in)
			src = inflate
		}
		p, err := io.ReadAll(src)
		if err != nil {
			return
		}
		b, bye := count.answer(p)
		if writeDeflated(c, h.OpCode, b) != nil || bye && sayGoodbye(c) != nil {
			return
		}
	}
}

func writeDeflated(c net.Conn, op ws.OpCode, p []byte) error {
	f, err := wsflate.CompressFrame(ws.NewFrame(op, true, p))
	if err != nil {
		return err
	}
	return ws.WriteFrame(c, f)
}
