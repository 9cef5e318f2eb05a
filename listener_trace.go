package peerws

import "time"

// A Trace has functions that are called when something happens to a listener's peers,
// for metrics and tracing. Any of them may be nil; a nil Trace costs nothing. They are
// called with no lock held, for different peers at the same time, and must not block:
// somebody waits for them.
type Trace struct {
	// Opened: the opening handshake has succeeded. It comes before OnConnection.
	Opened func(*WebSocket)

	// Refused: a transport or a request was turned away.
	Refused func(Refusal)

	// Closed: the socket has ended, and how. It comes before OnError and OnClose, once
	// for each Opened.
	Closed func(*WebSocket, CloseEvent)

	// Slow: a callback of the program's has been running for some time, a second or
	// more, and the peer waits for it. It comes once for a callback.
	Slow func(*WebSocket, time.Duration)
}

// A Refusal is a transport or request that was turned away.
type Refusal struct {
	Remote string        // its address, "" if that is not known
	Reason RefusalReason // what it is counted under
	Status int           // of the answer, 0 if there was none
	Err    error         // the cause in words
}

// slowAfter is how long a callback may run before Trace.Slow is told.
const slowAfter = time.Second

// A slowness is a callback that the clock has found running. Guarded by WebSocket.mu.
type slowness struct {
	word  uint64 // of WebSocket.reader: another callback has another one
	since uint32 // the clock's time
	told  bool
}

// checkSlow tells the trace of a callback that takes its time. The clock calls it.
func (c *WebSocket) checkSlow(now uint32) {
	if c.owner == nil || c.owner.trace == nil || c.owner.trace.Slow == nil {
		return
	}
	word := c.reader.Load()
	if word&readerMask != readerAway {
		return
	}
	c.mu.Lock()
	s := &c.makeRareLocked().slow
	if s.word != word {
		*s = slowness{word: word, since: now}
	}
	quiet := now - s.since
	tell := !s.told && quiet >= millis(slowAfter)
	s.told = s.told || tell
	c.mu.Unlock()
	if tell {
		c.owner.trace.Slow(c, time.Duration(quiet)*time.Millisecond)
	}
}
