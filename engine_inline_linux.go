package peerws

import (
	"math"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Turns that the loop runs itself. To wake a worker while a processor is idle wakes a
// thread, which at low load costs more than a small message does. So when callbacks of
// late have all been quick, the loop runs the turns of a few sockets itself. A timer
// looks at it meanwhile: if it finds the loop in one and the same turn twice, a new loop
// takes the epoll set over, the old one is done when its turn is, and it takes many more
// quick turns until there is another inline one.
//
// It is a timerfd, not a timer of Go's: that would keep the runtime's monitor awake.

const (
	quickTurn  = 100 * time.Microsecond
	quickLeast = 64               // quick turns in a row before the first inline one
	quickMost  = 1 << 20          // and after loops have been taken over
	inlineLook = time.Millisecond // how often the timer looks
	quickShare = 8                // one of so many turns is timed

	// inlineMost is how many turns of a batch the loop runs itself. The others are the
	// workers', on other processors if there are any.
	inlineMost = 8
)

// A looper is a goroutine that has the loop, or had it.
type looper struct {
	file  *os.File // a copy of the epoll set's descriptor, for Go's poller
	raw   syscall.RawConn
	turns atomic.Uint64 // inline turns begun and ended: odd in one; looperGone: the loop is another's
	count int           // of inline turns, for timing some

	// The turns that it runs itself, those before at begun or over. Whoever takes the
	// loop over takes the others.
	batch    [inlineMost]task
	at, most int
}

const looperGone = 1 << 63

// inline is the part of an engine that belongs to inline turns.
type inline struct {
	quick atomic.Int64 // timed turns since the last slow one
	need  atomic.Int64 // how many there must be
	armed atomic.Bool  // the timer runs
	timer atomic.Pointer[timer]
	seen  uint64 // looper.turns when the timer looked last; the timer's
}

// newLooper makes a looper, which start sets going.
func (e *engine) newLooper() (*looper, error) {
	fd, err := unix.FcntlInt(uintptr(e.epoll), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	l := &looper{file: os.NewFile(uintptr(fd), "epoll")}
	if l.raw, err = l.file.SyscallConn(); err != nil {
		l.file.Close()
		return nil, err
	}
	return l, nil
}

// startLocked has l have the loop. lmu is held.
func (e *engine) startLocked(l *looper) {
	e.looper.Store(l)
	go func() {
		defer l.file.Close()
		defer e.loopEnded(l)
		l.raw.Read(func(uintptr) bool { return e.poll(l) })
	}()
}

// loopEnded gives the loop to a new goroutine if a callback has ended l's, with
// runtime.Goexit.
func (e *engine) loopEnded(l *looper) {
	if now := l.turns.Load(); now&looperGone == 0 && now&1 == 1 {
		e.takeOver(l, now)
	}
}

// A timer is a timerfd.
type timer struct {
	file *os.File
	raw  syscall.RawConn
}

// takeInline moves those of the ready turns that the loop is to run itself to l, a few
// and only quick ones, and not the first of a socket. pmu is held.
func (e *engine) takeInline(l *looper) {
	l.at, l.most = 0, 0
	if e.quick.Load() < e.need.Load() {
		return
	}
	rest := e.ready[:0]
	for _, t := range e.ready {
		if s := t.c.sock(); !t.write && l.most < len(l.batch) && s.begun {
			s.inline = true
			l.batch[l.most] = t
			l.most++
		} else {
			rest = append(rest, t)
		}
	}
	clear(e.ready[len(rest):])
	e.ready = rest
}

// runInline runs what takeInline has taken, and reports whether the loop is still l's.
func (e *engine) runInline(l *looper) bool {
	for l.at < l.most {
		t := l.batch[l.at]
		l.at++
		in := l.turns.Add(1)
		if !e.armed.Load() && e.armed.CompareAndSwap(false, true) {
			e.arm(inlineLook)
		}
		l.count++
		e.runTurn(t, l.count%quickShare == 0)
		if !l.turns.CompareAndSwap(in, in+1) {
			return false
		}
	}
	clear(l.batch[:l.most])
	return true
}

// runTurn runs a turn, and keeps account of quick ones.
func (e *engine) runTurn(t task, timed bool) {
	over := false
	defer func() {
		if !over { // a callback has ended the goroutine, with runtime.Goexit
			e.add(task{c: t.c, end: vLeft})
		}
	}()
	if !timed && e.quick.Load() >= e.need.Load() {
		t.c.turn()
		over = true
		return
	}
	start := time.Now()
	t.c.turn()
	over = true
	if time.Since(start) > quickTurn {
		e.quick.Store(0)
	} else {
		e.quick.Add(1)
	}
}

// arm sets the timer, which fires every d; 0 stops it.
func (e *engine) arm(d time.Duration) {
	t := e.timer.Load()
	if t == nil {
		if t = e.newTimer(); t == nil {
			e.need.Store(math.MaxInt64)
			return
		}
	}
	t.raw.Control(func(fd uintptr) { sysSetTimer(fd, d) })
}

// newTimer makes the timer, nil if that cannot be.
func (e *engine) newTimer() *timer {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil
	}
	t := &timer{file: os.NewFile(uintptr(fd), "timer")}
	t.raw, err = t.file.SyscallConn()
	e.lmu.Lock()
	defer e.lmu.Unlock()
	if err != nil || e.over {
		t.file.Close()
		return nil
	}
	e.timer.Store(t)
	go t.raw.Read(e.tick)
	return t
}

// tick runs when the timer has fired. RawConn.Read calls it.
func (e *engine) tick(fd uintptr) bool {
	for {
		if !sysTimerFired(fd) {
			return false
		}
		l := e.looper.Load()
		switch now := l.turns.Load(); {
		case now != e.seen:
			e.seen = now
		case now&1 == 1:
			e.takeOver(l, now)
		default: // nothing has been going on
			e.armed.Store(false)
			e.arm(0)
			if e.armed.Load() { // the loop has set it meanwhile, before it was stopped
				e.arm(inlineLook)
			}
		}
	}
}

// takeOver gives the loop to a new goroutine, if l is still in the turn numbered now.
func (e *engine) takeOver(l *looper, now uint64) {
	next, err := e.newLooper()
	if err != nil { // no descriptor left: l has to go on
		return
	}
	e.lmu.Lock()
	defer e.lmu.Unlock()
	if e.over || !l.turns.CompareAndSwap(now, now|looperGone) {
		next.file.Close()
		return
	}
	e.quick.Store(0)
	e.need.Store(min(e.need.Load()*4, quickMost))
	e.startLocked(next)
	for _, t := range l.batch[l.at:l.most] {
		e.add(t)
	}
}
