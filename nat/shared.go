package nat

import (
	"context"
	"sync"
)

// A shared runs one function, for each key, on behalf of all who ask for it at
// the same time, so that five listeners of one program that start together
// search the network once. Its zero value is ready for use.
type shared[K comparable, V any] struct {
	mu      sync.Mutex
	running map[K]*sharedCall[V]
}

type sharedCall[V any] struct {
	waiting int // callers that still want the outcome; below shared.mu
	cancel  context.CancelFunc
	done    chan struct{} // closed when value and err are there
	value   V
	err     error
}

// do returns what f returns, now or for a call that already runs. f runs until
// the last of its callers has left, whose do waits for its end: nothing goes on
// behind their backs. A caller whose ctx ends gets ctx's error.
func (s *shared[K, V]) do(ctx context.Context, key K, f func(context.Context) (V, error)) (V, error) {
	s.mu.Lock()
	c := s.running[key]
	if c == nil {
		running, cancel := context.WithCancel(context.WithoutCancel(ctx))
		c = &sharedCall[V]{cancel: cancel, done: make(chan struct{})}
		if s.running == nil {
			s.running = make(map[K]*sharedCall[V])
		}
		s.running[key] = c
		go func() {
			c.value, c.err = f(running)
			s.mu.Lock()
			s.drop(key, c)
			s.mu.Unlock()
			close(c.done)
		}()
	}
	c.waiting++
	s.mu.Unlock()

	select {
	case <-c.done:
		return c.value, c.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	c.waiting--
	last := c.waiting == 0
	if last {
		s.drop(key, c) // who comes now begins anew
	}
	s.mu.Unlock()
	if last {
		<-c.done
	}
	var none V
	return none, ctxError(ctx)
}

// drop ends a call and makes room for the next of that key.
func (s *shared[K, V]) drop(key K, c *sharedCall[V]) {
	c.cancel()
	if s.running[key] == c {
		delete(s.running, key)
	}
}

// A search is the key of a search for gateways: what for, and where.
type search struct {
	op    string
	links [maxGateways]link
}

func searchOf(op string, links []link) search {
	s := search{op: op}
	copy(s.links[:], links)
	return s
}
