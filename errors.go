package peerws

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
)

// A StatusCode is the number in a Close frame (RFC 6455 §7.4). It is not an
// error by itself.
type StatusCode uint16

// The status codes of RFC 6455 §7.4.1 and the registry it founded. The last
// column says who may send one: a program by [WebSocket.CloseWith], the library
// itself, or nobody.
const (
	StatusNormalClosure    StatusCode = 1000 // program
	StatusGoingAway        StatusCode = 1001 // program (accepted side), Shutdown
	StatusProtocolError    StatusCode = 1002 // library
	StatusUnsupportedData  StatusCode = 1003 // library
	StatusNoStatusReceived StatusCode = 1005 // nobody: a Close frame had no code
	StatusAbnormalClosure  StatusCode = 1006 // nobody: there was no Close frame
	StatusInvalidPayload   StatusCode = 1007 // library
	StatusPolicyViolation  StatusCode = 1008 // program (accepted side), library
	StatusMessageTooBig    StatusCode = 1009 // library
	StatusMissingExtension StatusCode = 1010 // library (dialled side)
	StatusInternalError    StatusCode = 1011 // program (accepted side)
	StatusServiceRestart   StatusCode = 1012 // program (accepted side)
	StatusTryAgainLater    StatusCode = 1013 // program (accepted side)
	StatusBadGateway       StatusCode = 1014 // library
	StatusTLSHandshake     StatusCode = 1015 // nobody: TLS failed
)

// validOnWire reports whether a peer may put c in a Close frame (RFC 6455
// §7.4.2): 1004 is reserved, 1005, 1006 and 1015 never travel, 1016–2999 belong
// to future standards.
func (c StatusCode) validOnWire() bool {
	switch {
	case c >= 1000 && c <= 1014:
		return c != 1004 && c != StatusNoStatusReceived && c != StatusAbnormalClosure
	default:
		return c >= 3000 && c <= 4999
	}
}

// An Initiator tells whose act ended a connection.
type Initiator uint8

const (
	InitiatorLocal   Initiator = iota // this program closed or aborted it, or shut the listener down
	InitiatorPeer                     // the peer sent Close
	InitiatorNetwork                  // the transport ended or failed without a closing handshake
	InitiatorLimit                    // the peer broke the protocol or went over one of our limits
	InitiatorTimeout                  // the peer took too long: WriteTimeout, CloseTimeout, HandshakeTimeout
)

// MarshalText is String.
func (i Initiator) MarshalText() ([]byte, error) { return []byte(i.String()), nil }

func (i Initiator) String() string {
	switch i {
	case InitiatorLocal:
		return "local"
	case InitiatorPeer:
		return "peer"
	case InitiatorNetwork:
		return "network"
	case InitiatorLimit:
		return "limit"
	case InitiatorTimeout:
		return "timeout"
	}
	return "Initiator(" + strconv.Itoa(int(i)) + ")"
}

// A CloseEvent tells how a connection ended: what the WHATWG CloseEvent has
// (code, reason, wasClean) and what it hides from scripts (who, and why).
//
// It is an error and part of every error a method returns once the connection
// is closing: errors.AsType[peerws.CloseEvent](err) finds it, beside
// errors.Is(err, net.ErrClosed). While the closing handshake is still going on
// it holds what is known so far.
type CloseEvent struct {
	// Code is that of the Close frame we received; StatusNoStatusReceived if
	// that had none; StatusAbnormalClosure if we received none.
	Code StatusCode

	// Reason is the text of the Close frame we received: the peer's words, at
	// most 123 bytes of UTF-8.
	Reason string

	// WasClean reports whether the closing handshake was completed: a Close
	// frame sent, one received.
	WasClean bool

	// Initiator is whose act came first, and Err why, nil for an ordinary close.
	// A *ProtocolError or *LimitError says what the peer did wrong.
	Initiator Initiator
	Err       error
}

func (e CloseEvent) Error() string {
	s := "closed by " + e.Initiator.String()
	if e.Code != 0 {
		s += ", code " + strconv.Itoa(int(e.Code))
	}
	if e.Reason != "" {
		s += " " + strconv.Quote(e.Reason)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns e.Err.
func (e CloseEvent) Unwrap() error { return e.Err }

// A ProtocolError is what the peer did wrong. Code is what our Close frame told
// it; Reason is a constant, sent to it as well.
type ProtocolError struct {
	Code   StatusCode
	Reason string
}

func (e *ProtocolError) Error() string {
	return "peer broke the protocol: " + e.Reason + " (" + strconv.Itoa(int(e.Code)) + ")"
}

// A LimitError tells that the peer went over a limit that a field of
// [ListenConfig] or [Dialer] sets.
type LimitError struct {
	Option string     // the field's name
	Limit  int64      // its value
	Size   int64      // the message's size as far as it was announced, in the option's unit; 0 if unknown
	Code   StatusCode // what our Close frame told the peer, 0 if there was none
}

func (e *LimitError) Error() string {
	if e.Option == "MaxHeldBytes" {
		return "of all peers this one holds the most, " + strconv.FormatInt(e.Size, 10) + " bytes, and together they are over the limit " + e.Option + " of " + strconv.FormatInt(e.Limit, 10)
	}
	size, unit := "", " bytes"
	if e.Option == "MaxFragments" {
		unit = " fragments"
	}
	if e.Size != 0 {
		size = " of " + strconv.FormatInt(e.Size, 10) + unit
	}
	s := "message" + size + " is over the limit " + e.Option + " of " + strconv.FormatInt(e.Limit, 10)
	if e.Option == "MaxFragments" {
		s += " and one more for every " + strconv.Itoa(fragmentShare) + " bytes"
	}
	return s
}

// A SyntaxError tells that this program gave a value that cannot be: a URL, a
// subprotocol, a port, a close code. Nothing was sent or opened.
type SyntaxError struct {
	What   string // "port", "protocol", "URL", …
	Value  string
	Reason string
}

func (e *SyntaxError) Error() string {
	return "peerws: " + e.What + " " + strconv.Quote(e.Value) + ": " + e.Reason
}

// A HandshakeError tells why an opening handshake did not succeed, on the
// dialling side. Status is the HTTP status the listener answered with, 0 if
// there was no valid answer.
//
// Header has the answer's header lines, nil if there was no answer. Body is the
// beginning of its body, at most 4 KiB, as far as it came in time; there is none
// to a 101. A proxy that refuses leaves its own there, with Status 0. They are a
// stranger's words.
type HandshakeError struct {
	Status int
	Reason string
	Header http.Header
	Body   []byte
	Err    error
}

func (e *HandshakeError) Error() string {
	s := "peerws: opening handshake: " + e.Reason
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns e.Err.
func (e *HandshakeError) Unwrap() error { return e.Err }

var (
	// ErrBufferFull: messages are queued and this one would bring them over
	// MaxBufferedAmount. It was not taken; the connection lives.
	ErrBufferFull = errors.New("peerws: send queue full (MaxBufferedAmount)")

	// ErrReading: the connection is read by the other style (OnMessage against
	// Read, Messages, NextReader), or another goroutine is reading it.
	ErrReading = errors.New("peerws: connection is being read in another way")

	// ErrNotOpen: the socket is still CONNECTING.
	ErrNotOpen = errors.New("peerws: socket is not open yet")

	errMessageType = errors.New("peerws: message type is neither Text nor Binary")
	errTextUTF8    = errors.New("peerws: text message is not valid UTF-8")
	errReasonLong  = errors.New("peerws: close reason is longer than 123 bytes")
	errReasonUTF8  = errors.New("peerws: close reason is not valid UTF-8")
	errReasonBare  = errors.New("peerws: a close reason needs a code")
)

// closedError is what a method returns once the connection is closing.
type closedError struct {
	op string
	ev CloseEvent
}

func (e *closedError) Error() string   { return fmt.Sprintf("peerws: %s: %s", e.op, e.ev.Error()) }
func (e *closedError) Unwrap() []error { return []error{net.ErrClosed, e.ev} }
