package memnet

import (
	"cmp"
	"syscall"
)

// Faults says what goes wrong at one end of a connection, and when. Calls are
// counted from 1; a field that is 0 does nothing. A test that sets FailRead to
// 1, 2, 3, … until [Conn.Reads] stays below it has seen every Read of a program
// fail.
type Faults struct {
	// FailRead and FailWrite number the call that fails with Err, before it
	// moves a byte and without waiting for one. A connection that has failed
	// stays so: later calls of the same kind fail too, unless Once is set.
	FailRead, FailWrite int

	// ShortRead numbers the Read that gets one byte and no more, which every
	// reader must expect; Every makes each Read short.
	ShortRead int

	// ShortWrite numbers the Write that hands over only the first half of its
	// bytes and then fails with Err. Later ones fail like those after FailWrite.
	ShortWrite int

	// Err is what the failing calls return, in a *net.OpError; nil = ECONNRESET.
	Err error

	// Once lets the connection work again after a failed call.
	Once bool

	// ResetUnread makes Close a reset when this end has bytes it did not read,
	// as TCP does it: what the other end has not read yet is lost, a close
	// frame for example.
	ResetUnread bool
}

// Every, in Faults.ShortRead, stands for all calls.
const Every = -1

// SetFaults replaces the faults of this end. Calls made before count: see
// [Conn.Reads].
func (c *Conn) SetFaults(f Faults) {
	err := cmp.Or[error](f.Err, syscall.ECONNRESET)

	c.in.mu.Lock()
	c.in.readFaults.set(f.FailRead, f.ShortRead, err, f.Once)
	// A short Read is no failure.
	c.in.readFaults.shortFails = false
	c.in.mu.Unlock()

	c.out.mu.Lock()
	c.out.writeFaults.set(f.FailWrite, f.ShortWrite, err, f.Once)
	c.out.writeFaults.shortFails = true
	c.out.unreadResets = f.ResetUnread
	c.out.mu.Unlock()
}

// Reads returns how often Read was called at this end, failed calls and the one
// that waits now included.
func (c *Conn) Reads() int {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	return c.in.readFaults.calls
}

// Writes returns how often Write was called at this end.
func (c *Conn) Writes() int {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	return c.out.writeFaults.calls
}

// opFaults are the faults of one kind of call, guarded by the half's mutex.
type opFaults struct {
	calls int

	fail, short int
	shortFails  bool
	err         error
	once        bool
	broken      bool
}

func (f *opFaults) set(fail, short int, err error, once bool) {
	f.fail, f.short, f.err, f.once, f.broken = fail, short, err, once, false
}

// next counts a call and says how it shall go: short, with an error, or both (a
// short Write).
func (f *opFaults) next() (short bool, err error) {
	f.calls++
	if f.broken || f.fail == f.calls {
		f.broken = !f.once
		return false, f.err
	}
	if f.short == Every || f.short == f.calls {
		if !f.shortFails {
			return true, nil
		}
		f.broken = !f.once
		return true, f.err
	}
	return false, nil
}
