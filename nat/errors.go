package nat

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// A Kind is the sort of thing that went wrong, the same for all protocols.
type Kind int

// The kinds of failure. Where a protocol has its own word for one, it stands
// behind it: NAT-PMP result codes (RFC 6886 §3.5), PCP result codes (RFC 6887
// §7.4), UPnP error codes (UPnP IGD WANIPConnection:2 §2.5).
const (
	NoGateway       Kind = iota + 1 // nobody spoke the protocol
	Timeout                         // no answer in time
	Unsupported                     // the gateway is there and does not speak the protocol, or not this request
	Refused                         // NAT-PMP 2, PCP 2, UPnP 606: it may, and does not want to
	Conflict                        // PCP 11, UPnP 718, 729: the external port belongs to somebody else
	NoResources                     // NAT-PMP 4, PCP 8, 10 and 13, UPnP 728: its table is full, or our share of it
	WANDown                         // NAT-PMP 3, PCP 7: the gateway has no address of its own on the outside
	AddressMismatch                 // PCP 12, or a connected gateway without a public address: another NAT is in the way
	Malformed                       // the answer makes no sense
	Canceled                        // the caller's context ended
	NoNetwork                       // no default route, or no usable address of our own
)

// String is the kind in lower-case words.
func (k Kind) String() string {
	switch k {
	case NoGateway:
		return "no gateway answered"
	case Timeout:
		return "no answer in time"
	case Unsupported:
		return "not supported"
	case Refused:
		return "refused"
	case Conflict:
		return "port taken"
	case NoResources:
		return "no room for a mapping"
	case WANDown:
		return "gateway has no outside address"
	case AddressMismatch:
		return "another NAT is in the way"
	case Malformed:
		return "malformed answer"
	case Canceled:
		return "canceled"
	case NoNetwork:
		return "no network"
	}
	return fmt.Sprintf("kind %d", int(k))
}

// An Error is a failed call of a Mapper. [errors.As] finds it; [errors.Is]
// sees through it to the context's error and to those of the network.
type Error struct {
	Mapper     string        // the Name of the protocol
	Op         string        // "map", "unmap", "probe"
	Gateway    netip.Addr    // who answered, or was asked; invalid if nobody was
	Code       int           // the protocol's own number, 0 if it has none for this
	Kind       Kind          // the sort of failure
	RetryAfter time.Duration // the gateway wishes not to be asked again before; 0 = it did not say
	Err        error         // the cause; may be nil
}

// Error is one line in lower case: protocol, operation, gateway, kind, code, cause.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Mapper != "" {
		b.WriteString(e.Mapper)
		if e.Op != "" {
			b.WriteString(" " + e.Op)
		}
		if e.Gateway.IsValid() {
			b.WriteString(" at " + e.Gateway.String())
		}
		b.WriteString(": ")
	}
	b.WriteString(e.Kind.String())
	if e.Code != 0 {
		fmt.Fprintf(&b, " (code %d)", e.Code)
	}
	if e.Err != nil {
		// errors.Join separates by newlines; this is to be one line.
		b.WriteString(": " + strings.ReplaceAll(e.Err.Error(), "\n", "; "))
	}
	return b.String()
}

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.Err }

// Timeout reports whether the failure is that no answer came, as in net.Error.
func (e *Error) Timeout() bool { return e.Kind == Timeout }

// fill completes an *Error that deeper code began, or wraps err in one of kind.
func fill(mapper, op string, gateway netip.Addr, kind Kind, code int, err error) *Error {
	e := Error{Kind: kind, Code: code, Err: err}
	if inner, ok := err.(*Error); ok && inner.Mapper == "" {
		e = *inner
	}
	e.Mapper, e.Op = mapper, op
	if !e.Gateway.IsValid() {
		e.Gateway = gateway
	}
	return &e
}

// malformed is the beginning of an *Error about an answer without sense.
func malformed(format string, args ...any) error {
	return &Error{Kind: Malformed, Err: fmt.Errorf(format, args...)}
}

// telling makes one error of several askings: its kind is the one that says
// most about why there is no mapping, in the order of a diagnosis. An answer
// beats silence, and the special beats the general.
func telling(mapper, op string, errs []error) *Error {
	var best *Error
	for _, err := range errs {
		if e, ok := errors.AsType[*Error](err); ok && (best == nil || e.Kind.weight() > best.Kind.weight()) {
			best = e
		}
	}
	if best == nil {
		return &Error{Mapper: mapper, Op: op, Kind: NoGateway, Err: errors.Join(errs...)}
	}
	if len(errs) == 1 && best.Mapper == mapper {
		return best
	}
	e := *best
	e.Mapper, e.Op, e.Err = mapper, op, errors.Join(errs...)
	// One that wishes to be left alone does not speak for the others.
	for _, err := range errs {
		if x, ok := errors.AsType[*Error](err); ok {
			e.RetryAfter = min(e.RetryAfter, x.RetryAfter)
		}
	}
	return &e
}

// weight orders kinds by how much they explain.
func (k Kind) weight() int {
	order := [...]Kind{NoNetwork, NoGateway, Timeout, Unsupported, Malformed, Conflict, NoResources, WANDown, AddressMismatch, Refused, Canceled}
	for i, o := range order {
		if o == k {
			return i
		}
	}
	return -1
}

// kindOf is err's Kind, 0 if it is not an *Error.
func kindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return 0
}

// ctxKind is the Kind for a call that ctx ended, 0 if ctx has not ended.
func ctxKind(ctx context.Context) Kind {
	switch err := ctx.Err(); {
	case err == nil:
		return 0
	case errors.Is(err, context.DeadlineExceeded):
		return Timeout
	}
	return Canceled
}

// transport reports whether err says nothing about the request, only that the
// gateway could not be talked to as remembered: it is gone, was restarted
// behind another port, or we are on another network.
func transport(err error) bool {
	switch kindOf(err) {
	case NoGateway, Timeout, Unsupported, Malformed, NoNetwork:
		return true
	}
	return false
}
