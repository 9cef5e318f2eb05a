package nat

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Who asks for the same at the same time shares one run and its outcome; other
// keys, and who comes later, have their own.
func TestShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s shared[string, int]
		var runs atomic.Int64
		f := func(ctx context.Context) (int, error) {
			n := runs.Add(1)
			time.Sleep(time.Second)
			return int(n), nil
		}
		got := make(chan int, 10)
		for _, key := range []string{"a", "a", "a"} {
			go func() {
				n, _ := s.do(t.Context(), key, f)
				got <- n
			}()
		}
		time.Sleep(time.Second / 2)
		if n, err := s.do(t.Context(), "b", f); n != 2 || err != nil {
			t.Errorf("another key: run %d, %v", n, err)
		}
		for range 3 {
			if n := <-got; n != 1 {
				t.Errorf("got the outcome of run %d", n)
			}
		}
		if n, _ := s.do(t.Context(), "a", f); n != 3 || len(s.running) != 0 {
			t.Errorf("later: run %d, %d still running", n, len(s.running))
		}
	})
}

// The run ends with its last caller and not with its first, and no do returns
// while its run goes on.
func TestSharedCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s shared[string, int]
		var ended atomic.Bool
		f := func(ctx context.Context) (int, error) {
			<-ctx.Done()
			time.Sleep(time.Second) // it is slow to end
			ended.Store(true)
			return 1, ctx.Err()
		}
		first, stop := context.WithCancel(t.Context())
		second, stop2 := context.WithTimeout(t.Context(), time.Minute)
		defer stop2()
		done := make(chan error, 1)
		go func() {
			_, err := s.do(first, "a", f)
			done <- err
		}()
		synctest.Wait()
		other := make(chan error, 1)
		go func() {
			_, err := s.do(second, "a", f)
			other <- err
		}()
		synctest.Wait()
		stop()
		if err := <-done; kindOf(err) != Canceled || !errors.Is(err, context.Canceled) || ended.Load() {
			t.Errorf("the first: %v, run ended %v", err, ended.Load())
		}
		if err := <-other; kindOf(err) != Timeout || !ended.Load() || len(s.running) != 0 {
			t.Errorf("the last: %v, run ended %v", err, ended.Load())
		}
	})
}
