package nat

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/huin/goupnp"
)

// Limits on what a device may make us take in.
const (
	maxDescription = 256 << 10 // bytes of a device description
	maxSOAP        = 64 << 10  // bytes of an answer to a call
	maxDevices     = 16        // looked at in a description
	maxServices    = 32        // looked at in a device

	fetchTimeout = 3 * time.Second
	soapTimeout  = 5 * time.Second
)

var (
	errTooLarge  = errors.New("the answer is too large")
	errElsewhere = errors.New("the device wants us to connect elsewhere")
	errNoService = errors.New("the description has no WAN connection service")
)

// A deviceTransport is a RoundTripper for one call to one device: it connects to nobody
// else, through no proxy, from the address the gateway knows us by; it reads what
// net/http would not, but limited bytes, makes UTF-8 of them, and remembers what
// happened, since what stands above it tells only part.
type deviceTransport struct {
	link   link
	device netip.Addr
	limit  int64

	status int    // of the answer, 0 if there was none
	body   []byte // of the answer
	err    error  // why there was none
}

func (t *deviceTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	a, err := t.fetch(r)
	if err != nil {
		t.err = err
		return nil, err
	}
	t.status, t.body = a.status, plainXML(a.body)
	res := a.response(r)
	res.Body, res.ContentLength = io.NopCloser(bytes.NewReader(t.body)), int64(len(t.body))
	return res, nil
}

// answerPause is how long more of an answer is waited for that may be whole: its
// length is wrong, or is not said and the connection stays open.
const answerPause = 250 * time.Millisecond

// fetch is one request on a connection of its own: small devices have few to give.
func (t *deviceTransport) fetch(r *http.Request) (httpAnswer, error) {
	ctx := r.Context()
	port, err := strconv.ParseUint(r.URL.Port(), 10, 16) // checkLocation has put it there
	if a, bad := netip.ParseAddr(r.URL.Hostname()); err != nil || bad != nil || a != t.device {
		return httpAnswer{}, errElsewhere
	}
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(t.link.local, 0))}
	conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(t.device, uint16(port)).String())
	if err != nil {
		return httpAnswer{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	r = r.Clone(ctx)
	r.Close = true // Connection: close
	if err := r.Write(conn); err != nil {
		return httpAnswer{}, orContextError(ctx, err)
	}
	b := make([]byte, 0, 4<<10)
	for end := false; ; {
		if len(b) == cap(b) {
			b = slices.Grow(b, cap(b))
		}
		n, failed := conn.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		end = failed == io.EOF
		a, whole, err := parseAnswer(b, end)
		switch {
		case int64(len(a.body)) > t.limit || len(b) > maxHead+2*int(t.limit):
			return httpAnswer{}, malformed("%w", errTooLarge)
		case err != nil || whole == answerWhole:
			return a, err
		case failed != nil && whole == answerMaybe && ctx.Err() == nil:
			return a, nil
		case failed != nil:
			return httpAnswer{}, orContextError(ctx, failed)
		case whole == answerMaybe:
			conn.SetReadDeadline(time.Now().Add(answerPause))
		default:
			conn.SetReadDeadline(time.Time{})
		}
	}
}

// orContextError is err, or what ended ctx, of which err is a consequence then.
func orContextError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// client is an HTTP client over t that follows no redirects and keeps no cookies.
func (t *deviceTransport) client(timeout time.Duration) http.Client {
	return http.Client{
		Transport:     t,
		Timeout:       timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// plainXML makes UTF-8 of a document in whatever its head declares. Only ASCII
// matters to us, so all that is not UTF-8 is taken for Latin-1.
func plainXML(b []byte) []byte {
	b = bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))
	if !utf8.Valid(b) {
		u := make([]byte, 0, len(b)+len(b)/8)
		for _, c := range b {
			u = utf8.AppendRune(u, rune(c))
		}
		b = u
	}
	b = bytes.Map(func(r rune) rune {
		if r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0xFFFE || r == 0xFFFF { // what no XML has
			return -1
		}
		return r
	}, b)
	// Without the declaration, the decoder takes UTF-8 for granted.
	head := bytes.TrimLeft(b, " \t\r\n")
	if bytes.HasPrefix(head, []byte("<?xml")) {
		if _, after, ok := bytes.Cut(head, []byte("?>")); ok {
			b = after
		}
	}
	return b
}

// describe fetches the description at h and returns its WAN connection services.
// What it says of the router is noted in any case.
func (u *upnp) describe(ctx context.Context, h hit) ([]*service, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.url.String(), nil)
	if err != nil {
		return nil, malformed("description: %w", err)
	}
	t := &deviceTransport{link: h.link, device: h.device, limit: maxDescription}
	c := t.client(fetchTimeout)
	res, err := c.Do(req)
	if err != nil {
		return nil, httpError(ctx, t, fmt.Errorf("description: %w", err))
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, &Error{Kind: NoGateway, Code: res.StatusCode, Err: fmt.Errorf("description: HTTP %s", res.Status)}
	}
	root, err := parseDevice(t.body)
	if err != nil {
		return nil, err
	}
	services, err := findServices(root, h)
	u.routers.note(h.device, routerOf(root, h), err == nil)
	return services, err
}

// parseDevice reads a description (UPnP Device Architecture 1.1 §2.3).
func parseDevice(b []byte) (*goupnp.RootDevice, error) {
	root := new(goupnp.RootDevice)
	d := xml.NewDecoder(bytes.NewReader(plainXML(b)))
	d.DefaultSpace = goupnp.DeviceXMLNamespace
	d.Strict = false // bare ampersands in names of models are common
	if err := d.Decode(root); err != nil {
		return nil, malformed("description: %w", err)
	}
	return root, nil
}

// The services that map ports, the most capable first. The last two are those
// of drafts older than the standard, still found in old devices.
const (
	urnIP2    = "urn:schemas-upnp-org:service:WANIPConnection:2"
	urnIP1    = "urn:schemas-upnp-org:service:WANIPConnection:1"
	urnPPP1   = "urn:schemas-upnp-org:service:WANPPPConnection:1"
	urnOldIP  = "urn:dslforum-org:service:WANIPConnection:1"
	urnOldPPP = "urn:dslforum-org:service:WANPPPConnection:1"
)

var serviceURNs = [...]string{urnIP2, urnIP1, urnPPP1, urnOldIP, urnOldPPP}

// findServices lists the WAN connection services of a description, or over IPv6
// those of its firewall, one for
// each control URL, the most capable first. What the device called itself in
// its answer does not matter: some that say :1 have :2, and the other way round.
//
// Control URLs are resolved against URLBase and against the place of the
// description, since URLBase may name a port where nobody is. Whatever host they
// name, the device is asked.
func findServices(root *goupnp.RootDevice, h hit) ([]*service, error) {
	bases := []*url.URL{h.url}
	if u, err := checkLocation(strings.TrimSpace(root.URLBaseStr), h.device, h.device, true); err == nil && u.Host != h.url.Host {
		bases = []*url.URL{u, h.url}
	}
	dev := newDevice(h)
	urns := serviceURNs[:]
	if h.device.Is6() {
		urns = firewallURNs[:]
	}
	var all []*service
	devices := 0
	root.Device.VisitDevices(func(d *goupnp.Device) {
		if devices++; devices > maxDevices {
			return
		}
		for i, s := range d.Services {
			if i >= maxServices {
				return
			}
			urn := strings.TrimSpace(s.ServiceType)
			rank := slices.Index(urns, urn)
			if rank < 0 {
				continue
			}
			for _, base := range bases {
				if control, ok := resolveControl(base, strings.TrimSpace(s.ControlURL.Str), h.device); ok {
					all = append(all, &service{device: dev, urn: urn, control: *control, rank: rank})
				}
			}
		}
	})
	slices.SortStableFunc(all, func(a, b *service) int { return a.rank - b.rank })
	var unique []*service
	for _, s := range all {
		if !slices.ContainsFunc(unique, func(o *service) bool { return o.control == s.control }) {
			unique = append(unique, s)
		}
	}
	if len(unique) == 0 {
		return nil, &Error{Kind: Unsupported, Err: errNoService}
	}
	return unique, nil
}

// resolveControl makes an absolute URL of a control URL that may be relative,
// also without its leading slash.
func resolveControl(base *url.URL, s string, device netip.Addr) (*url.URL, bool) {
	if s == "" {
		return nil, false
	}
	if !strings.Contains(s, "://") && !strings.HasPrefix(s, "/") {
		s = "/" + s
	}
	ref, err := url.Parse(s)
	if err != nil {
		return nil, false
	}
	u, err := checkLocation(base.ResolveReference(ref).String(), device, device, true)
	return u, err == nil
}
