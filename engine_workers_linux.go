package peerws

import "sync"

// A task is what a worker is to do: an opening handshake, or a turn.
type task struct {
	c     *WebSocket
	a     *arrival // instead of c
	end   verdict  // that c has come to in its last turn
	write bool     // there is room for what c has queued
}

func (e *engine) run(t task, timed bool) {
	switch {
	case t.a != nil:
		t.a.handshake()
	case t.end == vLeft:
		t.c.left()
	case t.end != vMore:
		t.c.sock().finishes = true
		t.c.finish(t.end)
	case t.write:
		t.c.writeTurn()
	default:
		t.c.sock().inline = false
		e.runTurn(t, timed)
	}
}

// workers run tasks in the order in which they were added, each to its end: a callback
// may block. A worker that takes a task while more wait first sees to it that another
// one is on its way, so a batch of any size costs two wake-ups, and whoever blocks
// holds nobody up. Those that have nothing to do wait, the last one first in line, so
// that few grown stacks serve many sockets.
type workers struct {
	mu        sync.Mutex // nothing is locked under it
	queue     []task
	head      int // of queue
	idle      []chan struct{}
	searching bool // a worker is on its way to the queue
	stopped   bool
}

// idleWorkers is how many wait at most.
const idleWorkers = 32

// add queues tasks.
func (e *engine) add(tasks ...task) {
	if len(tasks) == 0 {
		return
	}
	e.mu.Lock()
	if e.head > 256 && 2*e.head > len(e.queue) { // it is never empty under steady load
		n := copy(e.queue, e.queue[e.head:])
		clear(e.queue[n:])
		e.queue, e.head = e.queue[:n], 0
	}
	e.queue = append(e.queue, tasks...)
	idle, need := e.searchLocked()
	e.mu.Unlock()
	e.wake(idle, need)
}

// busy reports whether tasks wait.
func (e *engine) busy() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.head < len(e.queue)
}

// searchLocked has a worker come to the queue, unless one does already. It returns
// what to give wake when mu is not held any more.
func (e *engine) searchLocked() (idle chan struct{}, need bool) {
	if e.searching {
		return nil, false
	}
	e.searching = true
	if n := len(e.idle); n > 0 {
		idle = e.idle[n-1]
		e.idle = e.idle[:n-1]
	}
	return idle, true
}

func (e *engine) wake(idle chan struct{}, need bool) {
	switch {
	case !need:
	case idle != nil:
		idle <- struct{}{}
	default:
		go e.work()
	}
}

func (e *engine) work() {
	me := make(chan struct{}, 1)
	n := 0
	e.mu.Lock()
	e.searching = false
	for {
		if e.head == len(e.queue) {
			e.queue, e.head = e.queue[:0], 0
			if e.stopped || len(e.idle) >= idleWorkers {
				e.mu.Unlock()
				return
			}
			e.idle = append(e.idle, me)
			e.mu.Unlock()
			<-me
			e.mu.Lock()
			e.searching = false
			continue
		}
		t := e.queue[e.head]
		e.queue[e.head] = task{}
		e.head++
		var idle chan struct{}
		need := false
		if e.head < len(e.queue) {
			idle, need = e.searchLocked()
		}
		e.mu.Unlock()
		e.wake(idle, need)
		n++
		e.run(t, n%quickShare == 0)
		e.mu.Lock()
	}
}

// stopWorkers ends the workers, those that have a task when it is done.
func (e *engine) stopWorkers() {
	e.mu.Lock()
	e.stopped = true
	idle := e.idle
	e.idle = nil
	e.mu.Unlock()
	for _, ch := range idle {
		ch <- struct{}{}
	}
}
