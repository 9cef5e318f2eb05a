package peerws

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"
)

func TestErrors_Texts(t *testing.T) {
	ev := CloseEvent{Code: 1006, Initiator: InitiatorLimit, Err: &LimitError{Option: "MaxMessageSize", Limit: 10, Size: 11, Code: 1009}}
	err := error(&closedError{"send", ev})
	if !errors.Is(err, net.ErrClosed) {
		t.Error("does not wrap net.ErrClosed")
	}
	if le, ok := errors.AsType[*LimitError](err); !ok || le.Option != "MaxMessageSize" {
		t.Error("does not wrap the cause")
	}
	for _, want := range []string{"MaxMessageSize", "10", "11"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %s", err, want)
		}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("wraps too much")
	}
}

func TestLimitErrorText(t *testing.T) {
	for _, tt := range []struct {
		err  LimitError
		want string
	}{
		{LimitError{Option: "MaxMessageSize", Limit: 10, Size: 19}, "message of 19 bytes is over the limit MaxMessageSize of 10"},
		{LimitError{Option: "MaxMessageSize", Limit: 10}, "message is over the limit MaxMessageSize of 10"},
		{LimitError{Option: "MaxFragments", Limit: 3, Size: 4}, "message of 4 fragments is over the limit MaxFragments of 3 and one more for every 512 bytes"},
	} {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}
