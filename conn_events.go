package peerws

import "time"

// Callbacks: what the program sets, and how it comes to run on the socket's own
// goroutine, one at a time.

// OnOpen sets what runs once when the socket is OPEN. On a socket that is, such
// as every accepted one, it runs at once.
func (c *WebSocket) OnOpen(f func(*WebSocket)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ReadyState() == Connecting || f == nil {
		c.makeRareLocked().onOpen = f
		return
	}
	if c.conn != nil { // it was open once
		c.postLocked(func() { f(c) })
	}
}

// OnMessage sets what runs for every message. It may be replaced at any time,
// from the next message on. Reading starts with the first OnMessage: messages
// that came before wait. m.Data is loaned: it is a window into the read buffer,
// valid until f returns; bytes.Clone keeps it.
//
// A socket that has been read by calls cannot get callbacks: OnMessage after a
// Read panics.
func (c *WebSocket) OnMessage(f func(c *WebSocket, m Message)) {
	if f == nil {
		f = func(*WebSocket, Message) {}
	}
	c.mu.Lock()
	style := c.life.style
	switch {
	case style == styleCalls:
	case c.life.stage < stageHeld:
		c.life.style = styleCallbacks
		c.handler = f
	default:
		c.life.style = styleCallbacks
		c.makeRareLocked().handler = f
		if c.life.stage != stageHeld { // else offer does it
			c.reader.Or(newHandler)
			c.openGateLocked()
		}
	}
	c.mu.Unlock()
	if style == styleCalls {
		panic("peerws: OnMessage on a socket that is read by Read, Messages or NextReader")
	}
}

// messageHandler returns what OnMessage has set, nil if nothing. The reader
// calls it.
func (c *WebSocket) messageHandler() func(*WebSocket, Message) {
	if c.reader.Load()&newHandler != 0 {
		c.mu.Lock()
		c.takeHandlerLocked()
		c.mu.Unlock()
		c.goAway()
		c.runTasks() // an OnOpen that was set with it comes before the message
		c.comeBack()
	}
	return c.handler
}

func (c *WebSocket) takeHandlerLocked() {
	if c.reader.Load()&newHandler != 0 {
		c.handler = c.life.rare.handler
		c.reader.And(^newHandler)
	}
}

// OnError sets what runs once, just before OnClose, if the socket failed. Set
// after that it runs at once.
func (c *WebSocket) OnError(f func(*WebSocket, error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ReadyState() != Closed || f == nil {
		c.makeRareLocked().onError = f
		return
	}
	if err := c.rareLocked().cause; err != nil {
		c.postLocked(func() { f(c, err) })
	}
}

// OnClose sets what runs once as the last event of the socket, also if it never
// opened. Set after that it runs at once.
func (c *WebSocket) OnClose(f func(*WebSocket, CloseEvent)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ReadyState() != Closed || f == nil {
		c.life.onClose = f
		return
	}
	ev := c.eventLocked()
	c.postLocked(func() { f(c, ev) })
}

// postLocked has f run on the socket's goroutine: the reader's, or after its
// end one that is made for it. mu is held.
func (c *WebSocket) postLocked(f func()) {
	x := c.makeRareLocked()
	x.tasks = append(x.tasks, f)
	switch c.life.stage {
	case stageEnded:
		c.life.stage = stageLate
		go c.runLate()
	case stageHeld, stageRunning:
		c.openGateLocked()
		if !c.severed() {
			c.wakeLocked(past)
		}
	}
}

// wakeLocked has the reader come out of its Read at t, past for now, and look
// around: readFailed. mu is held.
func (c *WebSocket) wakeLocked(t time.Time) {
	c.makeRareLocked().woken = true
	c.conn.SetReadDeadline(t)
}

// past is a deadline that has expired whenever it is looked at.
var past = time.Unix(1, 0)

// runTasks runs what postLocked left. The reader calls it.
func (c *WebSocket) runTasks() {
	for {
		c.mu.Lock()
		tasks := c.rareLocked().tasks
		if c.life.stage == stageHeld {
			tasks = nil // OnConnection runs
		}
		if tasks != nil {
			c.life.rare.tasks = nil
		}
		c.mu.Unlock()
		if tasks == nil {
			return
		}
		for _, f := range tasks {
			f()
		}
	}
}

// runLate runs callbacks that are set after the last event.
func (c *WebSocket) runLate() {
	for {
		c.runTasks()
		c.mu.Lock()
		if c.life.rare.tasks == nil {
			c.life.stage = stageEnded
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
	}
}
