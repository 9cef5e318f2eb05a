package main

import "time"

// A pace holds back a peer that says more than people do, so that a flood from
// one cannot fill the queues of all the others: paceBurst lines as fast as they
// come, then one every paceStep. Nothing is dropped; the connection is only
// read later, and TCP tells the peer.
type pace struct {
	due time.Time // when the lines up to now would have been said at one every paceStep
}

const (
	paceBurst = 2000
	paceStep  = time.Millisecond
)

// next counts a line at the time now and returns how long to wait before taking
// another.
func (p *pace) next(now time.Time) time.Duration {
	if p.due.Before(now) {
		p.due = now
	}
	p.due = p.due.Add(paceStep)
	return max(0, p.due.Sub(now)-paceBurst*paceStep)
}
