package peerws

import "sync"

// A task is what a worker is to do: an opening handshake, or a turn.
type task struct {
	c *WebSocket
	a *arrival
}

func (t task) run() {
	if t.a != nil {
		t.a.handshake()
	} else {
		t.c.turn()
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
func (p *workers) add(tasks ...task) {
	if len(tasks) == 0 {
		return
	}
	p.mu.Lock()
	if p.head > 256 && 2*p.head > len(p.queue) { // it is never empty under steady load
		n := copy(p.queue, p.queue[p.head:])
		clear(p.queue[n:])
		p.queue, p.head = p.queue[:n], 0
	}
	p.queue = append(p.queue, tasks...)
	idle, need := p.searchLocked()
	p.mu.Unlock()
	p.wake(idle, need)
}

// busy reports whether tasks wait.
func (p *workers) busy() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.head < len(p.queue)
}

// searchLocked has a worker come to the queue, unless one does already. It returns
// what to give wake when mu is not held any more.
func (p *workers) searchLocked() (idle chan struct{}, need bool) {
	if p.searching {
		return nil, false
	}
	p.searching = true
	if n := len(p.idle); n > 0 {
		idle = p.idle[n-1]
		p.idle = p.idle[:n-1]
	}
	return idle, true
}

func (p *workers) wake(idle chan struct{}, need bool) {
	switch {
	case !need:
	case idle != nil:
		idle <- struct{}{}
	default:
		go p.work()
	}
}

func (p *workers) work() {
	me := make(chan struct{}, 1)
	p.mu.Lock()
	p.searching = false
	for {
		if p.head == len(p.queue) {
			p.queue, p.head = p.queue[:0], 0
			if p.stopped || len(p.idle) >= idleWorkers {
				p.mu.Unlock()
				return
			}
			p.idle = append(p.idle, me)
			p.mu.Unlock()
			<-me
			p.mu.Lock()
			p.searching = false
			continue
		}
		t := p.queue[p.head]
		p.queue[p.head] = task{}
		p.head++
		var idle chan struct{}
		need := false
		if p.head < len(p.queue) {
			idle, need = p.searchLocked()
		}
		p.mu.Unlock()
		p.wake(idle, need)
		t.run()
		p.mu.Lock()
	}
}

// stop ends the workers, those that have a task when it is done.
func (p *workers) stop() {
	p.mu.Lock()
	p.stopped = true
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, ch := range idle {
		ch <- struct{}{}
	}
}
