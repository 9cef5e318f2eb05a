package peerws

import (
	"runtime"
	"sync"
)

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
		return
	case t.write:
		t.c.writeTurn()
		return
	}
	s := t.c.sock()
	s.inline = false
	switch t.end {
	case vMore:
		e.runTurn(t, timed)
	case vLeft:
		t.c.left()
	default:
		s.finishes = true
		t.c.finish(t.end)
	}
}

// workers run tasks to their end: a callback may block. A worker that takes a task while
// more wait first sees to it that another one is on its way, so a batch of any size
// costs two wake-ups, and whoever blocks holds nobody up. Those that have nothing to do
// wait, the last one first in line, so that few grown stacks serve many sockets.
//
// Tasks are run in the order in which they were added, but turns that have had their
// share come after all others: peers that send without end share what those that do not
// leave over.
type workers struct {
	mu        sync.Mutex // nothing is locked under it
	queue     taskQueue
	late      taskQueue // turns that have had their share
	passed    int       // tasks run while late ones waited
	idle      []chan struct{}
	searching bool // a worker is on its way to the queue
	glancing  int  // workers that glance, and come to the queue then
	stopped   bool
}

const (
	// idleWorkers is how many wait at most.
	idleWorkers = 32
	// glancers is how many workers with only late turns to run glance at a time. Each
	// lets others run first: were more of them to do so, they would be new ones for each
	// event that comes meanwhile.
	glancers = 4
	// latePart: one of so many tasks is a late one, if there are any.
	latePart = 16
)

// A taskQueue is first in, first out.
type taskQueue struct {
	list []task
	head int
}

func (q *taskQueue) len() int { return len(q.list) - q.head }

func (q *taskQueue) push(tasks ...task) {
	if q.head > 256 && 2*q.head > len(q.list) { // it is never empty under steady load
		n := copy(q.list, q.list[q.head:])
		clear(q.list[n:])
		q.list, q.head = q.list[:n], 0
	}
	q.list = append(q.list, tasks...)
}

func (q *taskQueue) pop() task {
	t := q.list[q.head]
	q.list[q.head] = task{}
	if q.head++; q.head == len(q.list) {
		q.list, q.head = q.list[:0], 0
	}
	return t
}

// add queues tasks.
func (e *engine) add(tasks ...task) {
	if len(tasks) > 0 {
		e.addTo(&e.queue, tasks...)
	}
}

// addLate queues a turn that has had its share.
func (e *engine) addLate(c *WebSocket) { e.addTo(&e.late, task{c: c}) }

func (e *engine) addTo(q *taskQueue, tasks ...task) {
	e.mu.Lock()
	q.push(tasks...)
	idle, need := e.searchLocked()
	e.mu.Unlock()
	e.wake(idle, need)
}

// busy reports whether tasks wait.
func (e *engine) busy() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.queue.len()+e.late.len() > 0
}

// searchLocked has a worker come to the queue if something is in it, unless one does
// already. It returns what to give wake when mu is not held any more.
func (e *engine) searchLocked() (idle chan struct{}, need bool) {
	if e.searching || e.queue.len() == 0 && (e.late.len() == 0 || e.glancing > 0) {
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
		nothing := e.queue.len() == 0
		if nothing && e.late.len() > 0 && e.glancing < glancers {
			e.glancing++
			e.mu.Unlock()
			e.glance()
			e.mu.Lock()
			e.glancing--
			nothing = e.queue.len()+e.late.len() == 0
		}
		if nothing {
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
		t := e.nextLocked()
		idle, need := e.searchLocked()
		e.mu.Unlock()
		e.wake(idle, need)
		n++
		e.run(t, n%quickShare == 0)
		e.mu.Lock()
	}
}

// nextLocked takes the next task. There is one; mu is held.
func (e *engine) nextLocked() task {
	if e.late.len() > 0 {
		if e.passed++; e.queue.len() == 0 || e.passed >= latePart {
			e.passed = 0
			return e.late.pop()
		}
	}
	return e.queue.pop()
}

// glance is for a worker that has only late turns to run: it looks for events itself and
// lets other goroutines run. With every processor busy the scheduler would look for
// events every 10 ms only.
func (e *engine) glance() {
	if e.pmu.TryLock() {
		e.collectLocked()
		e.add(e.ready...)
		clear(e.ready)
		e.ready = e.ready[:0]
		e.pmu.Unlock()
	}
	runtime.Gosched()
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
