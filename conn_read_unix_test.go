//go:build unix

package peerws

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
)

// The peer's last messages and the end of its side arrive together: the end is
// seen by the same read, or by the poller first, and takes no message with it.
func TestEndTogetherWithData(t *testing.T) {
	const messages = 2000
	for _, portable := range []bool{false, true} {
		for _, how := range []string{"Close frame", "FIN only", "in the middle of a frame"} {
			t.Run(fmt.Sprintf("portable=%v/%s", portable, how), func(t *testing.T) {
				for range 20 {
					ours, theirs := realPair(t, portable)
					c := accepted(testSettings(), ours, portable)
					n := 0
					c.OnMessage(func(_ *WebSocket, m Message) { n++ })
					script := strings.Repeat(maskedHello, messages)
					switch how {
					case "Close frame":
						script += maskedClose
					case "in the middle of a frame":
						script += maskedHello[:8]
					}
					if _, err := io.WriteString(theirs, script); err != nil {
						t.Fatal(err)
					}
					theirs.(*net.TCPConn).CloseWrite()
					go c.run() // all of it lies there, the end too
					ev := waitDone(t, c)
					theirs.Close()
					if clean := how == "Close frame"; n != messages || ev.WasClean != clean || !clean && ev.Initiator != InitiatorNetwork {
						t.Fatalf("%d messages, %+v", n, ev)
					}
				}
			})
		}
	}
}

// Read's style too: what came before the end is read first.
func TestEndTogetherWithData_Read(t *testing.T) {
	for _, portable := range []bool{false, true} {
		ours, theirs := realPair(t, portable)
		c := accepted(testSettings(), ours, portable)
		io.WriteString(theirs, strings.Repeat(maskedHello, 500))
		theirs.Close()
		go c.run()
		n := 0
		for _, err := range c.Messages(t.Context()) {
			if err != nil {
				break
			}
			n++
		}
		if n != 500 {
			t.Errorf("portable %v: %d messages", portable, n)
		}
		waitDone(t, c)
	}
}
