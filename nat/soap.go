package nat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"html"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/huin/goupnp/soap"
	"golang.org/x/sync/semaphore"
)

// A device is one gateway that speaks UPnP.
type device struct {
	hit  hit
	busy *semaphore.Weighted // one call at a time: small devices stumble over more
}

func newDevice(h hit) *device { return &device{hit: h, busy: semaphore.NewWeighted(1)} }

// A service is one WAN connection of a device: UPnP IGD WANIPConnection:1, :2
// or WANPPPConnection:1. Fields below mu change, the others never.
type service struct {
	device  *device
	urn     string // exactly as the description has it
	control url.URL
	rank    int // in serviceURNs

	mu        sync.Mutex
	permanent bool       // takes only leases without end
	noAny     bool       // has no AddAnyPortMapping although it should
	trusted   bool       // an accepted mapping was really there once
	external  netip.Addr // its outside address, invalid if it has none
	asked     time.Time  // when it was asked for it
}

// The codes of UPnP faults that are more than a refusal (WANIPConnection:2
// §2.5, UPnP Device Architecture 1.1 §3.2.2).
const (
	codeInvalidAction    = 401
	codeInvalidArgs      = 402
	codeActionFailed     = 501
	codeNotImplemented   = 602
	codeNotAuthorized    = 606
	codeNoSuchEntry      = 714
	codeConflict         = 718
	codeNoWildcardPort   = 716
	codeSamePorts        = 724
	codeOnlyPermanent    = 725
	codeOnlyWildcardPort = 727
	codeNoPortMaps       = 728
	codeOtherMechanism   = 729
	codeHTTPServerError  = 500 // no UPnP code but a bare HTTP 500, which some send for all of these
)

// call performs one action. in and out are pointers to structs of strings, in
// the order of the service's definition, or nil.
//
// The library's generated clients are not used for it: they have the service
// type built in, and the one in the description is what the device knows.
func (s *service) call(ctx context.Context, action string, in, out any) error {
	if err := s.device.busy.Acquire(ctx, 1); err != nil {
		return &Error{Kind: ctxKind(ctx), Err: err}
	}
	defer s.device.busy.Release(1)
	call, cancel := context.WithTimeout(ctx, soapTimeout)
	defer cancel()
	t := &deviceTransport{link: s.device.hit.link, device: s.device.hit.device, limit: maxSOAP}
	c := soap.SOAPClient{EndpointURL: s.control, HTTPClient: t.client(soapTimeout)}
	err := c.PerformActionCtx(call, s.urn, action, in, out)
	if err == nil {
		return nil
	}
	// The library's error loses the cause of what failed below it, and has
	// the whole body of what came: ours has what matters.
	cause := t.err
	if cause == nil {
		cause = err
	}
	err = fmt.Errorf("%s: %w", action, cause)
	if t.status == 0 || t.err != nil {
		if ctx.Err() != nil {
			return &Error{Kind: ctxKind(ctx), Err: errors.Join(ctx.Err(), err)}
		}
		return httpError(call, t, err)
	}
	// A fault may come with any status, and its code where the library does
	// not look.
	if code, text := parseFault(t.body); code != 0 {
		return &Error{Kind: faultKind(code), Code: code, Err: fmt.Errorf("%s: UPnP error %d %s", action, code, text)}
	}
	switch t.status {
	case http.StatusOK:
		if readOut(t.body, action, out) {
			return nil
		}
		return &Error{Kind: Malformed, Err: err}
	case http.StatusUnauthorized, http.StatusForbidden:
		return &Error{Kind: Refused, Code: t.status, Err: err}
	case http.StatusInternalServerError:
		return &Error{Kind: Refused, Code: codeHTTPServerError, Err: err}
	}
	return &Error{Kind: NoGateway, Code: t.status, Err: err} // what answers there is no such service any more
}

// readOut reads the answer to an action as devices write it that have other
// namespaces than SOAP's, or none: what stands between the tags is all that
// matters. Nothing at all is an answer to an action that has none to give.
func readOut(body []byte, action string, out any) bool {
	if out == nil && len(bytes.TrimSpace(body)) == 0 {
		return true
	}
	if !bytes.Contains(body, []byte(action+"Response")) {
		return false
	}
	if out == nil {
		return true
	}
	v := reflect.ValueOf(out).Elem()
	for i := range v.NumField() {
		v.Field(i).SetString(html.UnescapeString(elementText(body, v.Type().Field(i).Name)))
	}
	return true
}

// httpError is the *Error for a call that got no whole answer.
func httpError(ctx context.Context, t *deviceTransport, err error) error {
	if ctx.Err() != nil {
		return &Error{Kind: ctxKind(ctx), Err: errors.Join(ctx.Err(), err)}
	}
	if e, ok := errors.AsType[*Error](t.err); ok {
		return &Error{Kind: e.Kind, Err: err}
	}
	if e, ok := errors.AsType[net.Error](t.err); ok && e.Timeout() {
		return &Error{Kind: Timeout, Err: err}
	}
	return &Error{Kind: NoGateway, Err: err}
}

// parseFault finds the UPnP error code and its description in a fault, 0 if
// there is none. Devices disagree with each other about case, prefixes and
// what is around it.
func parseFault(body []byte) (code int, text string) {
	b := bytes.ToLower(body)
	if !bytes.Contains(b, []byte("fault")) {
		return 0, ""
	}
	code, err := strconv.Atoi(elementText(b, "errorcode"))
	if err != nil || code < -999 || code > 999 {
		return 0, ""
	}
	// What a device says goes to logs and people: letters, and not many.
	text = strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return -1
		}
		return c
	}, elementText(body, "errorDescription"))
	return code, text[:min(len(text), 80)]
}

// elementText is what stands behind the first element of that name.
func elementText(b []byte, name string) string {
	_, b, _ = bytes.Cut(b, []byte(name))
	_, b, _ = bytes.Cut(b, []byte(">"))
	b, _, _ = bytes.Cut(b, []byte("<"))
	return strings.TrimSpace(string(b))
}

func faultKind(code int) Kind {
	switch code {
	case codeInvalidAction, codeNotImplemented:
		return Unsupported
	case codeConflict, codeOtherMechanism:
		return Conflict
	case codeNoPortMaps:
		return NoResources
	}
	return Refused
}

// codeOf is the code in an *Error, 0 if it has none.
func codeOf(err error) int {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return 0
}
