package peerws

import (
	"net/http"
	"strings"
	"testing"
)

func compressionOf(t testing.TB, c Compression) *compression {
	t.Helper()
	set, err := c.prepare(coreLimits{maxMessage: -1, maxFragments: -1})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func headWith(t testing.TB, lines ...string) *head {
	t.Helper()
	var b strings.Builder
	for _, l := range lines {
		b.WriteString("Sec-WebSocket-Extensions: " + l + "\r\n")
	}
	h := new(head)
	if err := h.parseFields([]byte(b.String() + "\r\n")); err != nil {
		t.Fatal(err)
	}
	return h
}

// RFC 7692 §7.1: what a listener answers to offers.
func TestRFC7692_Section7_1_Answers(t *testing.T) {
	const pmd = "permessage-deflate"
	off, alone, context := Compression{}, Compression{Mode: CompressionNoContext}, Compression{Mode: CompressionContext}
	small := Compression{Mode: CompressionContext, WindowBits: 10}
	const both = pmd + "; server_no_context_takeover; client_no_context_takeover"
	for _, c := range []struct {
		set   Compression
		offer string
		want  string // "" is none
	}{
		{off, pmd, ""},
		{alone, pmd, both},
		{context, pmd, pmd},
		{context, pmd + "; server_no_context_takeover", pmd + "; server_no_context_takeover"},
		{context, pmd + "; client_no_context_takeover", pmd + "; client_no_context_takeover"},
		{alone, pmd + "; client_max_window_bits", both},
		{alone, pmd + "; client_max_window_bits=10", both + "; client_max_window_bits=10"},
		{context, pmd + "; server_max_window_bits=8", pmd + "; server_max_window_bits=8"},
		{context, pmd + "; server_max_window_bits=15; client_max_window_bits=9", pmd + "; server_max_window_bits=15; client_max_window_bits=9"},
		{context, pmd + `; server_max_window_bits="12"`, pmd + "; server_max_window_bits=12"},
		{context, "  " + pmd + " ;  server_max_window_bits = 9 ", pmd + "; server_max_window_bits=9"},

		// A window of ours is answered only if it was offered.
		{small, pmd, pmd + "; server_max_window_bits=10"},
		{small, pmd + "; client_max_window_bits", pmd + "; server_max_window_bits=10; client_max_window_bits=10"},
		{small, pmd + "; client_max_window_bits=8; server_max_window_bits=9", pmd + "; server_max_window_bits=9; client_max_window_bits=8"},
		{small, pmd + "; client_max_window_bits=15; server_max_window_bits=15", pmd + "; server_max_window_bits=10; client_max_window_bits=10"},

		// The first that can be met, in order.
		{context, pmd + "; server_max_window_bits=16, " + pmd + "; server_max_window_bits=9, " + pmd, pmd + "; server_max_window_bits=9"},
		{context, "x-other; a=1, , " + pmd, pmd},
		{context, pmd + "; x, " + pmd + "; client_no_context_takeover", pmd + "; client_no_context_takeover"},

		// Declined (§7.1): unknown, repeated, out of range, a value too many or too few.
		{context, pmd + "; x", ""},
		{context, pmd + "; x=1", ""},
		{context, pmd + ";", ""},
		{context, pmd + "; ", ""},
		{context, pmd + "; server_no_context_takeover; server_no_context_takeover", ""},
		{context, pmd + "; client_no_context_takeover; client_no_context_takeover", ""},
		{context, pmd + "; server_no_context_takeover=1", ""},
		{context, pmd + "; client_no_context_takeover=", ""},
		{context, pmd + "; server_max_window_bits", ""},
		{context, pmd + "; server_max_window_bits=", ""},
		{context, pmd + "; server_max_window_bits=7", ""},
		{context, pmd + "; server_max_window_bits=16", ""},
		{context, pmd + "; server_max_window_bits=0", ""},
		{context, pmd + "; server_max_window_bits=08", ""},
		{context, pmd + "; server_max_window_bits=010", ""},
		{context, pmd + "; server_max_window_bits=1", ""},
		{context, pmd + "; server_max_window_bits=-9", ""},
		{context, pmd + "; server_max_window_bits=10x", ""},
		{context, pmd + "; server_max_window_bits=99999999999999999999", ""},
		{context, pmd + "; server_max_window_bits=9; server_max_window_bits=9", ""},
		{context, pmd + "; client_max_window_bits; client_max_window_bits", ""},
		{context, pmd + "; client_max_window_bits; client_max_window_bits=9", ""},
		{context, pmd + "; client_max_window_bits=", ""},
		{context, pmd + "; client_max_window_bits=7", ""},
		{context, pmd + `; client_max_window_bits="`, ""},
		{context, pmd + `; client_max_window_bits=""`, ""},
		{context, "PerMessage-Deflate2", ""},
		{context, "x-webkit-deflate-frame", ""},
		{context, "", ""},
		{context, ", ,", ""},
		{context, "=, " + pmd, ""}, // malformed: what is behind it is not looked at
	} {
		got := ""
		if a, ok := acceptDeflate(headWith(t, c.offer), compressionOf(t, c.set)); ok {
			got = string(a.append(nil))
		}
		if got != c.want {
			t.Errorf("%+v\n%s\n%s, want\n%s", c.set, c.offer, got, c.want)
		}
	}
	if a, ok := acceptDeflate(headWith(t, "x", pmd), compressionOf(t, context)); !ok || string(a.append(nil)) != pmd {
		t.Error("in the second of two lines it is not found")
	}
}

// RFC 6455 §4.1, RFC 7692 §7.1: an answer that was not offered, or not so, is the end.
func TestRFC7692_Section7_1_Answered(t *testing.T) {
	const pmd = "permessage-deflate"
	alone, context := Compression{Mode: CompressionNoContext}, Compression{Mode: CompressionContext}
	small := Compression{Mode: CompressionContext, WindowBits: 10}
	for _, c := range []struct {
		set    Compression
		answer []string
		agreed bool
		ok     bool
	}{
		{context, nil, false, true},
		{context, []string{"", ", ,"}, false, true},
		{Compression{}, nil, false, true},
		{Compression{}, []string{pmd}, false, false},
		{context, []string{pmd}, true, true},
		{context, []string{pmd + "; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=8; client_max_window_bits=8"}, true, true},
		{context, []string{", " + pmd + ","}, true, true},
		{alone, []string{pmd + "; server_no_context_takeover"}, true, true},
		{small, []string{pmd + "; server_max_window_bits=10; client_max_window_bits=9"}, true, true},
		{small, []string{pmd}, true, true}, // to the second offer

		{alone, []string{pmd}, false, false}, // it would refer to earlier messages
		{context, []string{pmd, pmd}, false, false},
		{context, []string{pmd + ", " + pmd}, false, false},
		{context, []string{pmd + ", x"}, false, false},
		{context, []string{"x"}, false, false},
		{context, []string{"=;"}, false, false},
		{context, []string{pmd + "; client_max_window_bits"}, false, false},
		{context, []string{pmd + "; server_max_window_bits=16"}, false, false},
		{context, []string{pmd + "; server_max_window_bits=9; server_max_window_bits=9"}, false, false},
		{context, []string{pmd + "; x"}, false, false},
	} {
		_, agreed, ok := compressionOf(t, c.set).answered(headWith(t, c.answer...))
		if agreed != c.agreed || ok != c.ok {
			t.Errorf("%+v %q: agreed %v, ok %v; want %v, %v", c.set, c.answer, agreed, ok, c.agreed, c.ok)
		}
	}
	for _, c := range []struct {
		set  Compression
		want string
	}{
		{alone, pmd + "; server_no_context_takeover; client_no_context_takeover; client_max_window_bits"},
		{context, pmd + "; client_max_window_bits"},
		{small, pmd + "; server_max_window_bits=10; client_max_window_bits=10, " + pmd + "; client_max_window_bits"},
	} {
		if got := string(compressionOf(t, c.set).appendOffer(nil)); got != c.want {
			t.Errorf("%+v offers %s, want %s", c.set, got, c.want)
		}
	}
}

// Whatever is offered, the answer is one that our own dialler takes from a listener
// with the same options.
func FuzzDeflateParameters(f *testing.F) {
	for _, s := range []string{
		"permessage-deflate", "permessage-deflate; client_max_window_bits", "permessage-deflate; server_max_window_bits=8; client_max_window_bits=15",
		`permessage-deflate; server_max_window_bits="10"`, "x; y=\"a,b;c\\\"\", permessage-deflate; client_no_context_takeover; server_no_context_takeover", ";;=\"\\,,",
	} {
		f.Add(s, uint8(1), uint8(0))
		f.Add(s, uint8(2), uint8(9))
	}
	f.Fuzz(func(t *testing.T, value string, mode, bits uint8) {
		if strings.ContainsAny(value, "\r\n\x00") || !isText([]byte(value)) {
			return
		}
		set, err := Compression{Mode: CompressionMode(mode%2 + 1), WindowBits: int(bits%8 + 8)}.prepare(coreLimits{})
		if err != nil {
			t.Fatal(err)
		}
		a, ok := acceptDeflate(&head{fields: []field{{[]byte("Sec-WebSocket-Extensions"), []byte(value)}}}, set)
		if !ok {
			return
		}
		text := a.append(nil)
		p, parsed := parseDeflate(text[len("permessage-deflate"):][min(1, len(text)-len("permessage-deflate")):], true)
		if string(text) == "permessage-deflate" {
			p, parsed = parseDeflate(nil, true)
		}
		if !parsed || p != a {
			t.Fatalf("%q to %q", text, value)
		}
		if a.serverBits > set.windowBits || set.mode == CompressionNoContext && !(a.serverNoContext && a.clientNoContext) {
			t.Fatalf("%q to %q is more than the option allows", text, value)
		}
		set.agreed(a, false)
		set.agreed(a, true)
	})
}

// The option is checked where it is given.
func TestCompression_Arguments(t *testing.T) {
	for _, c := range []Compression{
		{Mode: 3}, {Mode: CompressionNoContext, Level: 10}, {Mode: CompressionNoContext, Level: -1},
		{Mode: CompressionContext, WindowBits: 7}, {Mode: CompressionContext, WindowBits: 16}, {WindowBits: -1},
	} {
		if _, err := (ListenConfig{Compression: c}).Listen(t.Context(), 0); err == nil {
			t.Errorf("Listen takes %+v", c)
		}
		if _, err := (Dialer{Compression: c}).Dial(t.Context(), "ws://127.0.0.1:1/"); err == nil || !strings.Contains(err.Error(), "compression") {
			t.Errorf("Dial: %v", err)
		}
	}
	if checkHeader("request header", http.Header{"Sec-Websocket-Extensions": {"permessage-deflate"}}) == nil {
		t.Error("the program may say it itself")
	}
}
