package peerws

import (
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// A deadline that passes and is moved at once ends the Read that waits, and
// does no harm: that Read must not take the connection's side for lent to it.
func TestNetConnDeadlineMovedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, d := Pipe(ListenConfig{}, Dialer{})
		na, nd := a.NetConn(Binary), d.NetConn(Binary)
		type result struct {
			n   int
			err error
		}
		results := make(chan result, 1)
		p := make([]byte, 16)
		read := func() {
			n, err := na.Read(p)
			results <- result{n, err}
		}
		go read()
		synctest.Wait()
		na.SetReadDeadline(time.Unix(1, 0))
		na.SetReadDeadline(time.Time{})
		synctest.Wait()
		select {
		case r := <-results:
			if r.n != 0 || !errors.Is(r.err, os.ErrDeadlineExceeded) {
				t.Errorf("Read: %d, %v, want the deadline", r.n, r.err)
			}
		default:
			t.Error("the Read goes on after its deadline has passed")
		}
		if _, err := nd.Write([]byte("next")); err != nil {
			t.Fatal(err)
		}
		if !t.Failed() {
			read()
		}
		if r := <-results; r.err != nil || string(p[:r.n]) != "next" {
			t.Errorf("Read: %q, %v", p[:r.n], r.err)
		}

		// Moved before it has passed, it ends the Read at its new time.
		go read()
		synctest.Wait()
		start := time.Now()
		na.SetReadDeadline(start.Add(time.Second))
		na.SetReadDeadline(start.Add(time.Minute))
		if r := <-results; !errors.Is(r.err, os.ErrDeadlineExceeded) || time.Since(start) != time.Minute {
			t.Errorf("Read: %v after %v", r.err, time.Since(start))
		}
		a.Abort()
		d.Abort()
		<-a.Done()
		<-d.Done()
	})
}
