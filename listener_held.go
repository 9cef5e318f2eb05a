package peerws

// The budget of a listener: how many bytes its sockets hold for their peers, messages
// that are being put together or taken apart, and queues, may be limited together.
//
// A socket tells of what it holds in steps of heldStep, so that small messages tell
// nothing, and when it holds nothing any more. When the sum is over MaxHeldBytes
// the socket that holds the most is ended.

// heldStep is what a socket may hold more, or less, on its read side or its write side,
// than it has told.
const heldStep = 16 << 10

// noteHeld tells the listener what the read side holds. Whoever has the read side calls it.
func (c *WebSocket) noteHeld() {
	if c.owner == nil {
		return
	}
	n := c.core.held()
	if n < heldStep && !c.read.holding {
		return
	}
	c.mu.Lock()
	x := c.makeRareLocked()
	more := n - x.held
	if n > 0 && more < heldStep && more > -heldStep {
		more = 0
	}
	x.held += more
	c.read.holding = x.held > 0
	c.mu.Unlock()
	c.owner.hold(more)
}

// held is how many bytes of memory the message that is arriving has.
func (c *core) held() int {
	if c.part == nil || c.part.buf == nil {
		return 0
	}
	return cap(c.part.buf.b)
}

// noteQueuedLocked tells the listener what the write side holds. wmu is held.
func (c *WebSocket) noteQueuedLocked() {
	if c.owner == nil {
		return
	}
	w := &c.writer
	n := w.out.waiting() + w.heldLocked().waiting()
	if n < heldStep && (w.backlog == nil || w.backlog.queued == 0) {
		return
	}
	b := w.makeBacklogLocked()
	more := n - b.queued
	if n > 0 && more < heldStep && more > -heldStep {
		return
	}
	b.queued = n
	c.owner.hold(more)
}

// hold adds to what is held, and has the greediest socket ended if it is too much. It
// may be called with a socket's locks held.
func (l *WebSocketListener) hold(more int) {
	if more == 0 {
		return
	}
	if now := l.held.Add(int64(more)); more > 0 && l.maxHeld > 0 && now > l.maxHeld && l.shedding.CompareAndSwap(false, true) {
		go l.shed()
	}
}

// shed ends sockets, those that hold the most first, until what the others hold is
// within MaxHeldBytes. One that is being ended may still need a moment to give its
// memory back, or its callback does.
func (l *WebSocketListener) shed() {
	defer l.shedding.Store(false)
	for {
		sum := l.held.Load()
		var greediest *WebSocket
		most := 0
		for _, c := range l.openSockets() {
			n := c.Stats().Held
			if c.severed() {
				sum -= int64(n)
			} else if n > most {
				greediest, most = c, n
			}
		}
		if sum <= l.maxHeld || greediest == nil {
			return
		}
		l.log.Warn("too much is held for peers: the greediest is ended", "remote", greediest.RemoteAddr(), "held", most, "of", sum, "MaxHeldBytes", l.maxHeld)
		greediest.abort(InitiatorLimit, &LimitError{Option: "MaxHeldBytes", Limit: l.maxHeld, Size: int64(most)})
	}
}
