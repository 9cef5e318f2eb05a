package peerws

import (
	"fmt"
	"io"
	"strings"
	"testing"
)

// What the parts cost, in memory: no socket, no goroutine. End to end it is
// BenchmarkEcho and its neighbours; beside other libraries it is bench/.

func BenchmarkHeaderParse(b *testing.B) {
	for _, size := range []int{125, 1 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			frame := clientFrame(0x82, make([]byte, size))[:14]
			b.ReportAllocs()
			for b.Loop() {
				if _, n, err := parseHeader(frame); n == 0 || err != nil {
					b.Fatal(n, err)
				}
			}
		})
	}
}

func BenchmarkHeaderAppend(b *testing.B) {
	for _, size := range []int64{125, 1 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			dst := make([]byte, 0, maxHeaderSize)
			b.ReportAllocs()
			for b.Loop() {
				dst = appendHeader(dst[:0], header{fin: true, op: opBinary, length: size})
			}
		})
	}
}

// benchmarkTexts are 16 KiB each.
var benchmarkTexts = []struct{ name, text string }{
	{"ascii", repeated(`{"id":4711,"name":"Ann","tags":["a","b"]},`)},
	{"german", repeated("Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. ")},
	{"cyrillic", repeated("Съешь же ещё этих мягких французских булок, да выпей чаю. ")},
	{"chinese", repeated("天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。")},
}

// repeated is s again and again, in 16 KiB that end with a whole character.
func repeated(s string) string {
	const size = 16 << 10
	n := size / len(s)
	return strings.Repeat(s, n) + strings.Repeat(".", size-n*len(s))
}

// One message through the core and back into bytes: parse, check, unmask,
// UTF-8 for text, the reply's header and its copy.
func BenchmarkCore(b *testing.B) {
	for _, size := range []int{32, 125, 1 << 10, 16 << 10} {
		b.Run(fmt.Sprintf("binary/size=%d", size), func(b *testing.B) {
			benchmarkCore(b, clientFrame(0x82, make([]byte, size)), 1, size)
		})
	}
	for _, t := range benchmarkTexts {
		b.Run("text/"+t.name, func(b *testing.B) {
			// A key of zeros, so that the text is the same in every round.
			h := header{fin: true, op: opText, masked: true, length: int64(len(t.text))}
			benchmarkCore(b, append(appendHeader(nil, h), t.text...), 1, len(t.text))
		})
	}
	b.Run("64 pipelined", func(b *testing.B) {
		benchmarkCore(b, []byte(strings.Repeat(string(clientFrame(0x82, make([]byte, 125))), 64)), 64, 64*125)
	})
}

// benchmarkCore shows wire, whole messages, to a core again and again.
// Unmasking in place changes the payload each time, which costs the same.
func benchmarkCore(b *testing.B, wire []byte, messages, size int) {
	limits := coreLimits{maxMessage: 1 << 20, maxFragments: 1024}
	c := core{limits: &limits}
	out := make([]byte, 0, len(wire))
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		out = out[:0]
		seen := 0
		for rest := wire; len(rest) > 0; seen++ {
			ev, n := c.next(rest)
			if ev.kind != evMessage {
				b.Fatalf("event %v", ev.kind)
			}
			out = appendFrame(out, ev.op, ev.data, false)
			rest = rest[n:]
		}
		if seen != messages {
			b.Fatalf("%d messages", seen)
		}
	}
}

// A request head and its answer: find its end, take it apart, check it, choose
// the protocol, write what goes back. The browser's has its usual dozen lines.
func BenchmarkHandshakeCodec(b *testing.B) {
	const upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	for _, request := range []struct{ name, head string }{
		{"program", "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + upgrade + "\r\n"},
		{"browser", "GET /room?x=1 HTTP/1.1\r\nHost: 127.0.0.1:9000\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n" +
			"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\n" +
			"Origin: http://127.0.0.1:9000\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9\r\n" + upgrade +
			"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\nSec-WebSocket-Protocol: chat\r\n\r\n"},
	} {
		b.Run(request.name, func(b *testing.B) {
			p, protocols, in := &policy{}, []string{"chat"}, &repeat{text: request.head}
			raw, out := newBuffer(4<<10), make([]byte, 0, answerSize)
			b.ReportAllocs()
			for b.Loop() {
				raw.b = raw.b[:0]
				n, err := readHead(in, raw, 8<<10)
				if err != nil {
					b.Fatal(err)
				}
				h := newHead()
				if r := h.parseRequest(raw.b[:n]); r != nil || !h.wantsUpgrade() {
					b.Fatal(r)
				}
				o, r := checkRequest(h, p, protocols)
				if r != nil {
					b.Fatal(r)
				}
				out = o.appendAnswer(out[:0], nil, chosen(o, protocols))
				h.free()
			}
		})
	}
}

// A repeat reads the same text again and again, whole each time.
type repeat struct{ text string }

func (r *repeat) Read(b []byte) (int, error) {
	if len(b) < len(r.text) {
		return 0, io.ErrShortBuffer
	}
	return copy(b, r.text), nil
}
