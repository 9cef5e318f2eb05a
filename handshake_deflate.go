package peerws

import (
	"bytes"
	"strconv"
)

// The negotiation of permessage-deflate (RFC 7692 §5.1 and §7.1): pure functions over
// header values. (gobwas/ws's wsflate passes a client_max_window_bits that stands
// twice, or has an empty value, for which the RFC has the offer declined.)

// maxWindowBits is the size of the window that is meant when nothing is said.
const maxWindowBits, minWindowBits = 15, 8

// deflateParams is what a side may say about permessage-deflate. In an offer,
// clientBits with clientAny set is the parameter without a value.
type deflateParams struct {
	serverNoContext, clientNoContext bool
	serverBits, clientBits           uint8 // 0: not said
	clientAny                        bool
}

// An extensionScanner takes the values of Sec-WebSocket-Extensions apart (RFC 6455
// §9.1). What it returns are windows into the value.
type extensionScanner struct {
	rest      []byte
	malformed bool
}

// next returns the next extension and its parameters, for parseDeflate to take; nil if
// it has none. It ends at what is malformed.
func (s *extensionScanner) next() (name, params []byte, ok bool) {
	for len(s.rest) > 0 {
		element, n := cutElement(s.rest)
		s.rest = s.rest[n:]
		if element = bytes.Trim(element, " \t"); len(element) == 0 {
			continue // RFC 9110 §5.6.1.2
		}
		name, params, _ = bytes.Cut(element, []byte(";"))
		name = bytes.Trim(name, " \t")
		s.malformed = !isTokens(name)
		return name, params, !s.malformed
	}
	return nil, nil, false
}

// cutElement returns the list element at the start of b and how much of b it and its
// comma are. A comma between quotes is part of it.
func cutElement(b []byte) (element []byte, n int) {
	quoted := false
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] == '\\' && quoted:
			i++
		case b[i] == '"':
			quoted = !quoted
		case b[i] == ',' && !quoted:
			return b[:i], i + 1
		}
	}
	return b, len(b)
}

// parseDeflate takes the parameters of permessage-deflate, those of an answer or of an
// offer. It is false for any that is unknown, stands twice, has a value that it must
// not have, or none where it must (§7.1).
func parseDeflate(params []byte, answer bool) (p deflateParams, ok bool) {
	clientBits := false
	for more := params != nil; more; {
		var one []byte
		one, params, more = bytes.Cut(params, []byte(";"))
		name, value, valued := bytes.Cut(one, []byte("="))
		switch string(bytes.Trim(name, " \t")) {
		case "server_no_context_takeover":
			if valued || p.serverNoContext {
				return p, false
			}
			p.serverNoContext = true
		case "client_no_context_takeover":
			if valued || p.clientNoContext {
				return p, false
			}
			p.clientNoContext = true
		case "server_max_window_bits":
			if p.serverBits != 0 {
				return p, false
			}
			if p.serverBits, ok = windowBits(value); !ok {
				return p, false
			}
		case "client_max_window_bits":
			if clientBits {
				return p, false
			}
			clientBits = true
			if !valued && !answer {
				p.clientAny = true
			} else if p.clientBits, ok = windowBits(value); !ok {
				return p, false
			}
		default:
			return p, false
		}
	}
	return p, true
}

// windowBits is the value 8 to 15 of a parameter, in decimal without leading zeros
// (§7.1.2.1), perhaps quoted.
func windowBits(v []byte) (uint8, bool) {
	v = bytes.Trim(v, " \t")
	if len(v) > 2 && v[0] == '"' && v[len(v)-1] == '"' {
		v = v[1 : len(v)-1]
	}
	switch {
	case len(v) == 1 && (v[0] == '8' || v[0] == '9'):
		return v[0] - '0', true
	case len(v) == 2 && v[0] == '1' && v[1] >= '0' && v[1] <= '5':
		return 10 + v[1] - '0', true
	}
	return 0, false
}

// acceptDeflate takes the first of a request's offers that can be met and returns what
// to answer. It is false if there is none, or compression is off.
func acceptDeflate(h *head, set *compression) (answer deflateParams, ok bool) {
	if set == nil {
		return answer, false
	}
	for _, f := range h.fields {
		if !f.is("Sec-WebSocket-Extensions") {
			continue
		}
		s := extensionScanner{rest: f.value}
		for {
			name, params, more := s.next()
			if !more {
				break
			}
			if string(name) != "permessage-deflate" {
				continue
			}
			if offer, ok := parseDeflate(params, false); ok {
				return set.answer(offer), true
			}
		}
	}
	return answer, false
}

// answer is what a listener says to an offer. It may always limit itself, and the
// client's context takeover; the client's window only if that was offered (§7.1.2.2).
func (set *compression) answer(offer deflateParams) deflateParams {
	a := deflateParams{
		serverNoContext: offer.serverNoContext || set.mode == CompressionNoContext,
		clientNoContext: offer.clientNoContext || set.mode == CompressionNoContext,
		serverBits:      offer.serverBits,
	}
	if b := set.windowBits; b < maxWindowBits {
		if a.serverBits == 0 || a.serverBits > b {
			a.serverBits = b
		}
		if offer.clientAny || offer.clientBits != 0 {
			a.clientBits = b
		}
	}
	if offer.clientBits != 0 && (a.clientBits == 0 || a.clientBits > offer.clientBits) {
		a.clientBits = offer.clientBits
	}
	return a
}

// appendOffer appends what a dialler says: with a smaller window first, where that is
// wanted, and then without (§7.1.3), for listeners that know of none.
func (set *compression) appendOffer(b []byte) []byte {
	alone := set.mode == CompressionNoContext
	if bits := set.windowBits; bits < maxWindowBits {
		b = append(deflateParams{alone, alone, bits, bits, false}.append(b), ", "...)
	}
	return deflateParams{serverNoContext: alone, clientNoContext: alone, clientAny: true}.append(b)
}

// answered takes the extensions of the answer to a dialler's offer, nil if there was
// none. agreed is false if there are none; ok is false if there is one that was not
// offered, or not so (RFC 6455 §4.1, RFC 7692 §7.1).
func (set *compression) answered(h *head) (p deflateParams, agreed, ok bool) {
	for _, f := range h.fields {
		if !f.is("Sec-WebSocket-Extensions") {
			continue
		}
		s := extensionScanner{rest: f.value}
		for {
			name, params, more := s.next()
			if !more && !s.malformed {
				break
			}
			if s.malformed || set == nil || agreed || string(name) != "permessage-deflate" {
				return p, false, false
			}
			if p, ok = parseDeflate(params, true); !ok {
				return p, false, false
			}
			agreed = true
		}
	}
	if !agreed {
		return p, false, true
	}
	agreed = p.serverNoContext || set.mode != CompressionNoContext // §7.1.1.1
	return p, agreed, agreed
}

// append appends permessage-deflate with its parameters.
func (p deflateParams) append(b []byte) []byte {
	b = append(b, "permessage-deflate"...)
	if p.serverNoContext {
		b = append(b, "; server_no_context_takeover"...)
	}
	if p.clientNoContext {
		b = append(b, "; client_no_context_takeover"...)
	}
	if p.serverBits != 0 {
		b = append(b, "; server_max_window_bits="...)
		b = strconv.AppendUint(b, uint64(p.serverBits), 10)
	}
	switch {
	case p.clientBits != 0:
		b = append(b, "; client_max_window_bits="...)
		b = strconv.AppendUint(b, uint64(p.clientBits), 10)
	case p.clientAny:
		b = append(b, "; client_max_window_bits"...)
	}
	return b
}
