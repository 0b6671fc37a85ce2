package upgrade

import (
	"bytes"
	"slices"
	"strings"
)

// handshake is what the opening of a WebSocket came to.
type handshake struct {
	opening    []byte // the request to replay: it offers exactly what was agreed
	extensions string // of the answer, in normal form
	protocol   string
}

// newHandshake makes it of the request, as the client sent it, and the answer to it.
func newHandshake(request, answer []byte) handshake {
	h := handshake{extensions: normalExtensions(fieldValues(answer, nameExtensions)), protocol: fieldValues(answer, nameProtocol)}
	h.opening = slices.Clone(setField(setField(request, nameExtensions, h.extensions), nameProtocol, h.protocol)) // kept for long: no room to spare
	return h
}

const (
	deflate          = "permessage-deflate"
	clientNoContext  = "client_no_context_takeover"
	serverNoContext  = "server_no_context_takeover"
	fieldExtensions  = "Sec-WebSocket-Extensions"
	fieldSubprotocol = "Sec-WebSocket-Protocol"
)

// movable says whether the client's compressor starts anew with each message: then a decompressor in another process can follow. The
// server's compressor may start anew at any time.
func (h *handshake) movable() bool {
	for ext := range strings.SplitSeq(h.extensions, ",") {
		name, params, _ := strings.Cut(ext, ";")
		switch {
		case strings.TrimSpace(name) == "":
		case strings.TrimSpace(name) != deflate:
			return false
		case !hasParam(params, clientNoContext):
			return false
		}
	}
	return true
}

// answeredBy tells whether the answer of another process agrees to the same.
func (h *handshake) answeredBy(answer []byte) bool {
	return normalExtensions(fieldValues(answer, nameExtensions)) == h.extensions && fieldValues(answer, nameProtocol) == h.protocol
}

// editOffer returns the request with compression offered without context takeover, nil if it offers none. RFC 7692 lets a server agree to
// both unasked, so the client is not lied to.
func editOffer(request []byte) []byte {
	offers := fieldValues(request, nameExtensions)
	if !strings.Contains(strings.ToLower(offers), deflate) {
		return nil
	}
	var list []string
	for offer := range strings.SplitSeq(offers, ",") {
		offer = strings.TrimSpace(offer)
		if name, params, _ := strings.Cut(offer, ";"); strings.EqualFold(strings.TrimSpace(name), deflate) {
			for _, p := range []string{serverNoContext, clientNoContext} {
				if !hasParam(params, p) {
					offer += "; " + p
				}
			}
		}
		list = append(list, offer)
	}
	return setField(request, nameExtensions, strings.Join(list, ", "))
}

func hasParam(params, name string) bool {
	for p := range strings.SplitSeq(params, ";") {
		p, _, _ = strings.Cut(p, "=")
		if strings.EqualFold(strings.TrimSpace(p), name) {
			return true
		}
	}
	return false
}

// normalExtensions writes an answer's extensions so that two that mean the same are equal.
func normalExtensions(s string) string {
	var list []string
	for ext := range strings.SplitSeq(strings.ToLower(s), ",") {
		parts := strings.Split(ext, ";")
		for i := range parts {
			parts[i] = strings.ReplaceAll(strings.TrimSpace(parts[i]), " ", "")
		}
		slices.Sort(parts[1:])
		if parts[0] != "" {
			list = append(list, strings.Join(parts, "; "))
		}
	}
	return strings.Join(list, ", ")
}

// fieldValues returns the values of a header field, several lines of it joined by commas.
func fieldValues(head, name []byte) string {
	var values []string
	for len(head) > 0 {
		var line []byte
		line, head = cutLine(head)
		if n, v, ok := bytes.Cut(line, []byte(":")); ok && bytes.EqualFold(n, name) {
			values = append(values, string(bytes.TrimSpace(v)))
		}
	}
	return strings.Join(values, ", ")
}

// setField returns the head with the field's lines replaced by one with this value, or by none if it is empty.
func setField(head, name []byte, value string) []byte {
	out := make([]byte, 0, len(head)+len(value)+32)
	for len(head) > 0 {
		line, rest := cutLine(head)
		whole := head[:len(head)-len(rest)]
		head = rest
		n, _, ok := bytes.Cut(line, []byte(":"))
		switch {
		case !ok || !bytes.EqualFold(n, name):
			out = append(out, whole...)
		case value != "":
			out = append(append(append(out, n...), ": "...), value...)
			out = append(out, "\r\n"...)
			value = ""
		}
	}
	return slices.Clip(out)
}
