package peerws

import (
	"bytes"
	"strings"
	"testing"

	"github.com/peerws/peerws/internal/memnet"
)

// A conversation cut into single bytes gives the same events and replies.
func TestEverySplit(t *testing.T) {
	conversation := maskedHello + maskedPing + "\x02\x81\x00\x00\x00\x00a" + maskedPing + "\x00\x80\x00\x00\x00\x00" +
		"\x80\x82\x00\x00\x00\x00bc" + string(clientFrame(0x82, bytes.Repeat([]byte("z"), 200))) + maskedClose
	for cut := range len(conversation) {
		ours, theirs := memnet.Pipe(0)
		c := accepted(testSettings(), ours, true)
		r := new(recorder)
		r.attach(c)
		go c.run()
		p := peer{t, theirs}
		if cut == 0 {
			for i := range len(conversation) {
				p.send(conversation[i : i+1])
			}
		} else {
			p.send(conversation[:cut])
			p.send(conversation[cut:])
		}
		p.want("replies", pong, pong, close1000)
		theirs.Close()
		waitDone(t, c)
		r.want(t, "open", `text "Hello"`, `binary "abc"`, `binary "`+strings.Repeat("z", 200)+`"`, `close 1000 "" clean=true by peer`)
	}
}

// Loaned memory is overwritten when the loan ends, in test builds.
func TestLoanIsPoisoned(t *testing.T) {
	if !raceMode {
		t.Skip("only builds with the race detector overwrite loaned memory; the test command runs this there")
	}
	onEach(t, func(t *testing.T, c *WebSocket, r *recorder, p peer) {
		var kept []byte
		second := make(chan string, 1)
		c.OnMessage(func(_ *WebSocket, m Message) {
			if kept == nil {
				kept = m.Data
				return
			}
			second <- string(kept)
		})
		p.send(maskedHello)
		p.send("\x81\x81\x00\x00\x00\x00x") // may come to lie where the first lay
		if s := <-second; s == "Hello" {
			t.Error("a kept window still reads Hello")
		}
	})
}
