package peerws

import (
	"errors"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Turns: what a worker does for a socket that has bytes, and how that ends.

// What a turn may do before others that wait have theirs.
const (
	shareReads  = 8   // blocks
	shareFrames = 256 // of small messages, control frames and empty fragments
)

// park ends the turn, unless something has come meanwhile, and reports whether it did.
// If so another may have begun already: the socket must not be touched.
func (c *WebSocket) park(s *sock) (bool, error) {
	c.settle()
	c.toggleWaiting()
	err := s.watch(0)
	for err == nil {
		v := s.state.Load()
		if v&(sockAgain|sockHup|sockWake) != 0 {
			break
		}
		if s.state.CompareAndSwap(v, v&^sockRun) {
			return true, nil
		}
	}
	c.toggleWaiting()
	return false, err
}

// turn is what a worker does for a socket that is ready.
func (c *WebSocket) turn() {
	s := c.sock()
	s.reads = 0
	from := vMore
	switch {
	case s.gated:
		s.gated = false
		from = vGated
	case !s.begun:
		s.begun = true
		c.started()
	case c.activity.Load()&1 != 0:
		c.toggleWaiting()
	}
	switch v := c.readLoop(from); {
	case v == vParked:
	case s.inline: // what comes now may take its time
		s.engine.add(task{c: c, end: v})
	default:
		s.finishes = true
		c.finish(v)
	}
}

// turnFill is fill for a socket of the engine. vParked is the end of the turn, vMore
// the result of a read.
func (c *WebSocket) turnFill(s *sock) (n int, v verdict, err error) {
	for {
		if c.wakePassed(s) {
			return 0, vParked, nil
		}
		if s.state.Load()&sockWake != 0 {
			s.state.And(^sockWake)
			s.dry = false
			return 0, vMore, os.ErrDeadlineExceeded
		}
		if !s.dry {
			if c.shared(s) {
				return 0, vParked, nil
			}
			if s.state.And(^(sockAgain|sockHup))&sockHup != 0 {
				s.hup = true
			}
			p := c.room()
			n, err := c.sysRead(uintptr(s.fd.Load()), p)
			if err == nil || !wouldBlock(err) {
				s.dry = err == nil && n < len(p) && !s.hup && c.set.sys == nil // a test's read may be short for no reason
				return n, vMore, err
			}
		}
		s.dry, s.hup = false, false
		if v, err := c.pause(s); v != vMore || err != nil {
			return 0, v, err
		}
	}
}

// shared is called before each read. It reports whether the turn has had its share, and
// is queued again.
func (c *WebSocket) shared(s *sock) bool {
	if s.reads++; s.reads <= shareReads || s.stays {
		return false
	}
	s.reads = 0
	return c.yield(s)
}

// yield queues a turn that has had its share behind the others, if there are any, and
// reports whether it did.
func (c *WebSocket) yield(s *sock) bool {
	if s.inline || s.engine.busy() {
		s.engine.addLate(c)
		return true
	}
	runtime.Gosched()
	return false
}

// A turn that the loop runs, or a Read of the program's, must not run callbacks: it is
// passed on to a worker when there are any. wakePassed and tasksPassed report whether it
// was.

func (c *WebSocket) wakePassed(s *sock) bool {
	if !s.inline || s.state.Load()&sockWake == 0 {
		return false
	}
	s.engine.add(task{c: c})
	return true
}

func (c *WebSocket) tasksPassed(s *sock) bool {
	if !s.inline {
		return false
	}
	c.mu.Lock()
	tasks := c.rareLocked().tasks
	c.mu.Unlock()
	if tasks == nil {
		return false
	}
	s.gated = true
	s.engine.add(task{c: c})
	return true
}

// turnInline goes on with a turn on the goroutine of a Read.
func (c *WebSocket) turnInline(s *sock) {
	s.inline = true
	c.turn()
}

// stopAtGate has the next turn begin in awaitGate.
func (s *sock) stopAtGate() { s.gated = true }

// pause is for a reader that has found nothing more to read: the end of its turn, which
// is vParked, or of its wait.
func (c *WebSocket) pause(s *sock) (verdict, error) {
	if s.stays {
		c.settle()
		c.toggleWaiting()
		err := s.wait(unix.EPOLLIN)
		c.toggleWaiting()
		return vMore, err
	}
	parked, err := c.park(s)
	if parked {
		return vParked, nil
	}
	return vMore, err
}

// look is what a reader that does not use turnFill does before each read. It reports
// whether the program wants it to look around.
func (s *sock) look() (woken bool) {
	s.state.And(^(sockAgain | sockHup))
	return s.state.And(^sockWake)&sockWake != 0
}

// left ends a socket whose callback has ended the goroutine that ran it.
func (c *WebSocket) left() {
	s := c.sock()
	if s.finishes { // it was one of the last callbacks
		return
	}
	if side := c.readSide(); side == readerAway || side == readerWatched {
		c.comeBack()
	}
	s.finishes = true
	c.abort(InitiatorLocal, errLeft)
	c.finish(vEnded)
}

var errLeft = errors.New("a callback has ended its goroutine")

// shares is how many frames may be taken apart before yield is called; -1: all.
func shares(s *sock) int {
	if s == nil {
		return -1
	}
	return shareFrames
}

// giveWay lets others run when the last read has not taken all there was.
func (s *sock) giveWay() {
	if !s.dry {
		s.engine.glance()
	}
}
