package peerws

import (
	"io"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Tasks come in their order, late ones when there are no others, or as one of latePart.
func TestWorkers_Order(t *testing.T) {
	var e engine
	sockets := make([]WebSocket, 3*latePart)
	which := func(c *WebSocket) int {
		for i := range sockets {
			if c == &sockets[i] {
				return i
			}
		}
		return -1
	}
	const late = 4
	for i := range sockets {
		q := &e.queue
		if i < late {
			q = &e.late
		}
		q.push(task{c: &sockets[i]})
	}
	var got []int
	for e.queue.len()+e.late.len() > 0 {
		got = append(got, which(e.nextLocked().c))
	}
	fresh, old := late, 0
	for n, i := range got {
		want := &fresh
		if n%latePart == latePart-1 || fresh == len(sockets) {
			want = &old
		}
		if i != *want {
			t.Fatalf("task %d is number %d, want %d: %v", n, i, *want, got)
		}
		*want++
	}
}

func TestTaskQueue(t *testing.T) {
	var q taskQueue
	sockets := make([]WebSocket, 1000)
	pushed, popped := 0, 0
	for popped < len(sockets) {
		for range 3 {
			if pushed < len(sockets) {
				q.push(task{c: &sockets[pushed]})
				pushed++
			}
		}
		for range 2 {
			if q.len() > 0 {
				if c := q.pop().c; c != &sockets[popped] {
					t.Fatalf("number %d is another", popped)
				}
				popped++
			}
		}
		if q.len() != pushed-popped {
			t.Fatalf("%d in the queue, %d were pushed, %d popped", q.len(), pushed, popped)
		}
	}
	if q.head != 0 || len(q.list) != 0 {
		t.Error("an empty queue keeps its place")
	}
}

// Peers that send without end, in each way, keep nobody else from being served.
func TestEngine_FloodsGiveWay(t *testing.T) {
	l := openPort(t, ListenConfig{OnConnection: echoing})
	for _, f := range []string{maskedHello, string(clientFrame(0x89, nil)), string(clientFrame(0x82, make([]byte, 16<<10)))} {
		for range 3 {
			k := knock(t, l, upgrade)
			k.wantOpen()
			defer k.conn.Close()
			go k.br.WriteTo(io.Discard)
			var batch []byte
			for len(batch) < 60_000 {
				batch = append(batch, f...)
			}
			go func() {
				for {
					if _, err := k.conn.Write(batch); err != nil {
						return
					}
				}
			}()
		}
	}
	k := knock(t, l, upgrade)
	k.conn.SetDeadline(time.Now().Add(stressPatience))
	k.wantOpen()
	for range 30 {
		k.send(maskedHello)
		k.wantBytes("echo", hello)
	}
	for range 3 {
		k := knock(t, l, upgrade)
		k.conn.SetDeadline(time.Now().Add(stressPatience))
		k.wantOpen()
		k.send(maskedHello)
		k.wantBytes("echo", hello)
		k.conn.Close()
	}
}

// Nor do the workers become more and more, none of which blocks.
func TestWorkers_FewUnderFloods(t *testing.T) {
	l := openPort(t, ListenConfig{OnConnection: echoing})
	const peers = 100
	before := runtime.NumGoroutine()
	for range peers {
		k := knock(t, l, upgrade)
		k.wantOpen()
		defer k.conn.Close()
		go k.br.WriteTo(io.Discard)
		batch := []byte(strings.Repeat(maskedHello, 5000))
		go func() {
			for {
				if _, err := k.conn.Write(batch); err != nil {
					return
				}
			}
		}()
	}
	most := 0
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		most = max(most, runtime.NumGoroutine()-before-2*peers)
	}
	if most > 3*idleWorkers {
		t.Errorf("%d goroutines", most)
	}
	t.Logf("%d goroutines at most", most)
}
