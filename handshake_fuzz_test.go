package peerws

import (
	"bufio"
	"bytes"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/gobwas/ws"
)

// FuzzHandshake gives the opening handshake any bytes. Nothing panics; a peer
// that sends them in two pieces gets the same; and what is accepted, net/http
// reads as we do, and the answer is a 101 with the accept that it expects.
func FuzzHandshake(f *testing.F) {
	f.Add([]byte(sampleHead), uint16(20))
	f.Add([]byte(upgrade+maskedHello), uint16(len(upgrade)))
	for i, c := range goodRequests {
		f.Add([]byte(c.head), uint16(i))
	}
	for i, c := range badRequests {
		f.Add([]byte(c.head), uint16(i))
	}
	for _, s := range []string{"/%", "/%zz?%", "http://server.example.com/%", "ws://[::1]:80?%"} {
		f.Add([]byte(strings.NewReplacer("/chat?room=1", s, "http:", "https:").Replace(sampleHead)), uint16(9))
	}
	for _, s := range []string{
		"", "\x16\x03\x01\x02\x00\x01\x00", "SSH-2.0-OpenSSH_9.7\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", getPage, "GET / HTTP/1.1\r\n A: b\r\n\r\n",
		"GET / HTTP/1.1\nA: b\n\n", "GET / HTTP/1.1\r\nA : b\r\n\r\n", "GET  / HTTP/1.1\r\n\r\n", "\r\n\r\n", "G\r\n\r\n",
	} {
		f.Add([]byte(s), uint16(1))
	}
	protocols := []string{"chat", "superchat"}
	policy, err := newPolicy([]string{"https://example.com", "null"}, []string{"server.example.com"})
	if err != nil {
		f.Fatal(err)
	}

	f.Fuzz(func(t *testing.T, data []byte, cut uint16) {
		const most = 2 << 10
		b := newBuffer(most)
		defer b.free()
		size, err := readHead(&script{pieces: [][]byte{bytes.Clone(data)}, err: io.EOF}, b, most)

		twice := newBuffer(most)
		defer twice.free()
		i := min(int(cut), len(data))
		size2, err2 := readHead(&script{pieces: [][]byte{bytes.Clone(data[:i]), bytes.Clone(data[i:])}, err: io.EOF}, twice, most)
		if (err == nil) != (err2 == nil) || size != size2 {
			t.Fatalf("in one piece %d, %v; cut at %d: %d, %v", size, err, i, size2, err2)
		}
		if err != nil {
			return
		}

		raw := b.b[:size]
		if !bytes.Equal(b.b, data[:b.len()]) {
			t.Fatal("bytes were changed")
		}
		var h head
		if h.parseRequest(raw) != nil || !h.wantsUpgrade() {
			return
		}
		o, refused := checkRequest(&h, policy, protocols)
		if refused != nil {
			wantSentence(t, refused.Error()+"\n")
			return
		}

		// net/http takes no % that is not an escape, and keeps the absolute form:
		// it gets the target that we have made of either.
		path, _, _ := strings.Cut(string(o.target), "?")
		target := replaceBare(path, "%25") + string(o.target[len(path):])
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(slices.Concat([]byte("GET "+target), raw[len("GET ")+len(h.target):]))))
		if err != nil {
			t.Fatalf("net/http refuses what we accept: %v", err)
		}
		if h.target[0] != '/' {
			r.Host = string(o.host)
		}
		if r.Method != string(h.method) || r.RequestURI != target || r.Host != string(o.host) || !r.ProtoAtLeast(1, 1) || r.ContentLength != 0 {
			t.Fatalf("net/http reads %q %q %q, we %q %q %q", r.Method, r.RequestURI, r.Host, h.method, o.target, o.host)
		}
		key := r.Header.Get("Sec-WebSocket-Key")
		if key != string(o.key) {
			t.Fatalf("net/http reads the key %q, we %q", key, o.key)
		}
		if offered := strings.Join(r.Header.Values("Sec-WebSocket-Protocol"), ","); !strings.Contains(offered, chosen(o, protocols)) {
			t.Fatalf("%q was chosen of %q", chosen(o, protocols), offered)
		}

		answer := o.appendAnswer(nil, nil, chosen(o, protocols))
		a, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(answer)), r)
		if err != nil || a.StatusCode != http.StatusSwitchingProtocols || a.Header.Get("Sec-WebSocket-Accept") != acceptKey(key) || a.Header.Get("Sec-WebSocket-Protocol") != chosen(o, protocols) {
			t.Fatalf("%q: %v", answer, err)
		}
		var offer []string
		if o.protocol > 0 {
			offer = []string{chosen(o, protocols)}
		}
		if protocol, _, err := checkResponse(answer, acceptKey(key), offer, nil); err != nil || protocol != chosen(o, protocols) {
			t.Fatalf("our dialler says %v to %q", err, answer)
		}

		// The other way in: net/http has read the request.
		again, refused := checkRequest(headOf(r), policy, protocols)
		if refused != nil || !bytes.Equal(again.host, o.host) || string(again.target) != target || again.protocol != o.protocol {
			t.Fatalf("by way of net/http: %v, %+v, want %+v", refused, again, o)
		}
		if other := again.appendAnswer(nil, nil, chosen(again, protocols)); !bytes.Equal(other, answer) {
			t.Fatalf("by way of net/http %q, want %q", other, answer)
		}
		kept := h.keep(len(raw))
		if q := readRequest(string(o.host), string(o.target), kept, "a", nil); q == nil || q.Host != r.Host || q.RequestURI != string(o.target) || q.URL.EscapedPath() == "" || !maps.EqualFunc(q.Header, r.Header, slices.Equal[[]string]) {
			t.Fatalf("Request has %v, want %v, kept is %q", q, r, kept)
		}

		// And another implementation, where it understands the request at all.
		var theirs bytes.Buffer
		u := ws.Upgrader{ReadBufferSize: max(len(raw), 512), Protocol: func(p []byte) bool { return string(p) == chosen(o, protocols) }}
		rw := struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(raw), &theirs}
		if hs, err := u.Upgrade(rw); err == nil && hs.Protocol == chosen(o, protocols) && !bytes.Equal(theirs.Bytes(), answer) {
			t.Fatalf("gobwas/ws answers %q, we %q", theirs.Bytes(), answer)
		}
	})
}
