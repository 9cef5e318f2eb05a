package natlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/peerws/peerws"
)

// Slow is not dead: what the peer takes or sends is life, however slowly.

const (
	kbit  = 1000
	short = 16 << 10 // of queue: half a second at 256 kbit/s
	long  = 96 << 10 // three seconds
)

// A slowCase is a program that sends some messages over a slow line and closes right
// behind them.
type slowCase struct {
	uplink  Line   // of the sender
	dials   bool   // the sender, else it listens
	secure  bool   // wss
	send    string // with Send, Write, NextWriter or NetConn
	size    int    // of a message
	count   int
	reads   int  // bytes a second that the taker's program reads at most; 0: as they come
	kernel  bool // the taker's kernel has room for all, so that nobody sees the program read
	wrapped bool // the taker's transport is not a socket itself
	returns int  // bytes that the taker has on the way to the sender meanwhile, over an uplink like this
	patience
}

// scaled are the default times for lines on which a second is much.
var scaled = patience{ping: time.Second, pong: time.Second, write: 2 * time.Second, close: time.Second}

// deep are those for a peer that opens its window in steps of more than a second.
var deep = patience{ping: time.Second, pong: 4 * time.Second, write: 4 * time.Second, close: 4 * time.Second}

func TestSlow(t *testing.T) {
	Need(t)
	t.Parallel()
	quarter := Line{Rate: 256 * kbit, Delay: 30 * time.Millisecond, Queue: short}
	deepQuarter := Line{Rate: 256 * kbit, Delay: 30 * time.Millisecond, Queue: long}
	eighth := Line{Rate: 128 * kbit, Delay: 30 * time.Millisecond, Queue: short}
	deepEighth := Line{Rate: 128 * kbit, Delay: 30 * time.Millisecond, Queue: 48 << 10}
	fast := Line{Rate: 20_000 * kbit, Delay: 10 * time.Millisecond}
	together(t, map[string]slowCase{
		"256, listener, Send":                   {uplink: quarter, send: "Send", size: 300_000, count: 1, patience: scaled},
		"256, dialler, Write":                   {uplink: quarter, dials: true, send: "Write", size: 150_000, count: 2, patience: scaled},
		"256, listener, NextWriter, wss":        {uplink: quarter, send: "NextWriter", secure: true, size: 300_000, count: 1, patience: scaled},
		"256, dialler, NetConn, wss":            {uplink: quarter, dials: true, send: "NetConn", secure: true, size: 300_000, count: 1, patience: scaled},
		"256, listener, NetConn":                {uplink: quarter, send: "NetConn", size: 100_000, count: 3, patience: scaled},
		"256, dialler, Send, wss":               {uplink: quarter, dials: true, send: "Send", secure: true, size: 300_000, count: 1, patience: scaled},
		"128, listener, Write":                  {uplink: eighth, send: "Write", size: 200_000, count: 1, patience: scaled},
		"128, dialler, NextWriter":              {uplink: eighth, dials: true, send: "NextWriter", size: 200_000, count: 1, patience: scaled},
		"128, listener, NetConn, wss":           {uplink: eighth, send: "NetConn", secure: true, size: 200_000, count: 1, patience: scaled},
		"256, long queue, listener, Send":       {uplink: deepQuarter, send: "Send", size: 300_000, count: 1, patience: scaled},
		"256, long queue, dialler, NetConn":     {uplink: deepQuarter, dials: true, send: "NetConn", size: 300_000, count: 1, patience: scaled},
		"128, long queue, dialler, Write, wss":  {uplink: deepEighth, dials: true, send: "Write", secure: true, size: 100_000, count: 2, patience: scaled},
		"128, long queue, listener, NetConn":    {uplink: deepEighth, send: "NetConn", size: 200_000, count: 1, patience: scaled},
		"reads 10 kB/s, listener, Send":         {uplink: fast, send: "Send", size: 150_000, count: 1, reads: 10_000, patience: deep},
		"reads 10 kB/s, dialler, Write, wss":    {uplink: fast, dials: true, send: "Write", secure: true, size: 150_000, count: 1, reads: 10_000, patience: deep},
		"reads 10 kB/s, listener, NetConn":      {uplink: fast, send: "NetConn", size: 150_000, count: 1, reads: 10_000, patience: deep},
		"reads 10 kB/s, NextWriter, wrapped":    {uplink: fast, send: "NextWriter", size: 150_000, count: 1, reads: 10_000, wrapped: true, patience: deep},
		"reads from its kernel":                 {uplink: fast, send: "Send", size: 25_000, count: 4, reads: 10_000, kernel: true, patience: scaled},
		"256, both, listener, Send":             {uplink: quarter, send: "Send", size: 10, count: 1, returns: 300_000, patience: scaled},
		"256, both, dialler, Write":             {uplink: quarter, dials: true, send: "Write", size: 10, count: 1, returns: 300_000, patience: scaled},
		"256, both, listener, NetConn, wss":     {uplink: quarter, send: "NetConn", secure: true, size: 10, count: 1, returns: 300_000, patience: scaled},
		"256, both, dialler, NetConn":           {uplink: quarter, dials: true, send: "NetConn", size: 100_000, count: 2, returns: 300_000, patience: scaled},
		"128, both, long queue, listener, Send": {uplink: deepEighth, send: "Send", size: 50_000, count: 1, returns: 200_000, patience: scaled},
	}, slowCase.link, slowCase.run)
}

// The true times, and the sizes that people have met.
func TestSlow_DefaultsLong(t *testing.T) {
	Need(t)
	if os.Getenv("PEERWS_LONG") == "" {
		t.Skip("takes long; the test command runs it with -long")
	}
	t.Parallel()
	line := Line{Rate: 256 * kbit, Delay: 30 * time.Millisecond, Queue: long}
	deepest := Line{Rate: 128 * kbit, Delay: 30 * time.Millisecond, Queue: 128 << 10}
	together(t, map[string]slowCase{
		"256, listener, Write":        {uplink: line, send: "Write", size: 1 << 20, count: 3},
		"256, dialler, NetConn, wss":  {uplink: line, dials: true, send: "NetConn", secure: true, size: 1 << 20, count: 3},
		"128, 8 s of queue, listener": {uplink: deepest, send: "NextWriter", size: 1 << 20, count: 1},
		"128, 8 s of queue, dialler":  {uplink: deepest, dials: true, send: "NetConn", size: 1 << 20, count: 1},
		"reads 10 kB/s":               {uplink: Line{Rate: 20_000 * kbit, Delay: 10 * time.Millisecond}, send: "Write", size: 1 << 20, count: 1, reads: 10_000},
		"256, both":                   {uplink: line, send: "Send", size: 1 << 20, count: 1, returns: 1 << 20},
		"128, both, 8 s of queue":     {uplink: deepest, dials: true, send: "Send", size: 100, count: 1, returns: 1 << 20},
	}, slowCase.link, slowCase.run)
}

// link: the sender's uplink is slow, the way back only where something is to come
// back by it.
func (c slowCase) link() (up, down Line) {
	back := Line{Rate: 10_000 * kbit, Delay: c.uplink.Delay}
	if c.returns > 0 {
		back = c.uplink
	}
	if c.dials {
		return c.uplink, back
	}
	return back, c.uplink
}

func (c slowCase) run(t label, s *Star, l *Link) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second+4*time.Duration((c.size*c.count+c.returns)*8)*time.Second/time.Duration(min(c.uplink.Rate, max(8*c.reads, 100*kbit))))
	defer cancel()
	d := c.dialer()
	d.NetDial = func(ctx context.Context, _, addr string) (net.Conn, error) {
		conn, err := l.Host.Dial(ctx, addr)
		if c.reads > 0 && !c.kernel {
			conn, err = narrow(conn, err)
		}
		if c.wrapped && err == nil {
			conn = struct{ net.Conn }{conn}
		}
		return conn, err
	}
	r := open(t, s, l, c.listen(), d, c.secure, c.reads > 0 && !c.kernel)
	if r == nil {
		return
	}
	defer r.Close()
	from, to, err := r.connect(ctx)
	if err != nil {
		t.Errorf("%v", err)
		return
	}
	if c.dials {
		from, to = to, from
	}
	defer from.Abort()
	defer to.Abort()

	want := payload(c.size * c.count)
	if c.returns > 0 {
		if err := to.SendBinary(payload(c.returns)); err != nil {
			t.Errorf("%v", err)
		}
		time.Sleep(200 * time.Millisecond) // its Close is not there before this has begun
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		got, err := c.take(ctx, to)
		if err != nil {
			t.Errorf("the taker, after %d of %d bytes: %v", len(got), len(want), err)
		} else if !bytes.Equal(got, want) {
			t.Errorf("%d bytes came, not the %d that were sent", len(got), len(want))
		}
	})
	wg.Go(func() {
		if err := c.give(ctx, from, want); err != nil && !c.kernel {
			t.Errorf("the sender: %v", err)
		}
	})
	for _, end := range []*peerws.WebSocket{from, to} {
		if ev, err := end.Wait(ctx); err != nil || !c.kernel && (!ev.WasClean || ev.Err != nil) {
			t.Errorf("the sender's end: %v: %+v, %v", end == from, ev, err)
		}
	}
	wg.Wait()
}

func payload(n int) []byte {
	b := make([]byte, n)
	seed := [32]byte{byte(n), byte(n >> 8)}
	rand.NewChaCha8(seed).Read(b)
	return b
}

// give sends the messages and closes.
func (c slowCase) give(ctx context.Context, ws *peerws.WebSocket, p []byte) error {
	conn := ws.NetConn(peerws.Binary)
	for part := range slices.Chunk(p, c.size) {
		var err error
		switch c.send {
		case "Send":
			err = ws.SendBinary(part)
		case "Write":
			err = ws.Write(ctx, peerws.Message{Type: peerws.Binary, Data: part})
		case "NetConn":
			_, err = conn.Write(part)
		case "NextWriter":
			var w io.WriteCloser
			if w, err = ws.NextWriter(ctx, peerws.Binary); err == nil {
				_, err = w.Write(part)
				err = errors.Join(err, w.Close())
			}
		}
		if err != nil {
			return err
		}
	}
	switch c.send {
	case "NetConn":
		return conn.Close()
	case "Write":
		ev, err := ws.CloseWait(ctx, peerws.StatusNormalClosure, "")
		if err == nil && !ev.WasClean {
			err = ev
		}
		return err
	}
	return ws.CloseWith(peerws.StatusNormalClosure, "")
}

// take reads all until the sender's end.
func (c slowCase) take(ctx context.Context, ws *peerws.WebSocket) ([]byte, error) {
	var all bytes.Buffer
	if c.send == "NetConn" {
		err := c.paced(&all, ws.NetConn(peerws.Binary))
		return all.Bytes(), err
	}
	for {
		_, r, err := ws.NextReader(ctx)
		if err != nil {
			if ev, ok := errors.AsType[peerws.CloseEvent](err); ok && (ev.Code == peerws.StatusNormalClosure || c.kernel) {
				err = nil
			}
			return all.Bytes(), err
		}
		before := all.Len()
		if err := c.paced(&all, r); err != nil {
			return all.Bytes(), err
		}
		if n := all.Len() - before; n != c.size {
			return all.Bytes(), fmt.Errorf("a message of %d bytes", n)
		}
	}
}

// paced copies r as fast as the taker's program reads.
func (c slowCase) paced(to io.Writer, r io.Reader) error {
	if c.reads == 0 {
		_, err := io.Copy(to, r)
		return err
	}
	const parts = 10 // a second
	for {
		_, err := io.CopyN(to, r, int64(c.reads/parts))
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		time.Sleep(time.Second / parts)
	}
}
