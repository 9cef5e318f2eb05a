package nat

import (
	"bytes"
	"errors"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// The Simple Service Discovery Protocol (UPnP Device Architecture 1.1 §1.3):
// a question to everybody, or to the gateway, about who has a service, and
// the answers, each the place of a description. What is here is pure; the
// sockets are in search.go.

// searchTargets are what is asked for. Some devices answer only to their own
// version, some only for their root; the description decides what they are.
var searchTargets = [...]string{
	"urn:schemas-upnp-org:device:InternetGatewayDevice:1",
	"urn:schemas-upnp-org:device:InternetGatewayDevice:2",
	"urn:schemas-upnp-org:service:WANIPConnection:1",
	"urn:schemas-upnp-org:service:WANIPConnection:2",
	"urn:schemas-upnp-org:service:WANPPPConnection:1",
	"upnp:rootdevice",
}

// appendSearch appends an M-SEARCH for a target. MX, the longest time in
// seconds a device may wait before it answers, is 1. The unicast form needs no
// MX and names another HOST, but devices that want them as in the multicast
// form exist, and none that mind.
func appendSearch(b []byte, target string) []byte {
	b = append(b, "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: "...)
	b = append(b, target...)
	return append(b, "\r\n\r\n"...)
}

// An ssdpReply is what we read of an answer.
type ssdpReply struct {
	location string // where the description is
	usn      string // who says so
	server   string // what it is
}

// parseSSDP reads an answer, and reads it leniently: header names in any
// case, a space before the colon or none behind it, blank lines where none
// belong, a status without words. Not an answer at all, or one without a
// location: false.
func parseSSDP(b []byte) (ssdpReply, bool) {
	line, b, _ := bytes.Cut(b, []byte("\n"))
	version, status, _ := strings.Cut(string(bytes.TrimSpace(line)), " ")
	status, _, _ = strings.Cut(strings.TrimSpace(status), " ")
	if len(version) < 5 || !strings.EqualFold(version[:5], "HTTP/") || status != "200" {
		return ssdpReply{}, false
	}
	var r ssdpReply
	for len(b) > 0 {
		line, b, _ = bytes.Cut(b, []byte("\n"))
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue
		}
		v := string(bytes.TrimSpace(value))
		switch strings.ToLower(string(bytes.TrimSpace(name))) {
		case "location":
			if r.location == "" {
				r.location = v
			}
		case "usn":
			r.usn = v
		case "server":
			r.server = v
		}
	}
	return r, r.location != ""
}

var (
	errScheme   = errors.New("location is not http")
	errLiteral  = errors.New("location has no literal address of the gateway's family")
	errSpecial  = errors.New("location is not an ordinary address")
	errNotThere = errors.New("location is neither at the sender nor at the gateway")
	errURL      = errors.New("location is no usable URL")
)

// checkLocation says where a description announced by from may be fetched: a
// LOCATION is an order from whoever is on the network to make this machine
// fetch a URL, so it is obeyed only for plain http at the gateway itself. Where
// the gateway names another address, a name or an address of the other family, or
// another address names itself, the gateway is asked for the same port and path: of a router with a shared
// "floating" address all of these are one. Whoever else answers is not asked
// anything, since a port opened there leads nowhere, and anybody can answer.
func checkLocation(location string, from, gateway netip.Addr, loopback bool) (*url.URL, error) {
	u, err := url.Parse(location)
	if err != nil || u.Opaque != "" || u.User != nil {
		return nil, errURL
	}
	if u.Scheme != "http" { // url.Parse has made it lower case
		return nil, errScheme
	}
	host, err := netip.ParseAddr(u.Hostname())
	from, gateway, host = from.Unmap(), gateway.Unmap(), host.Unmap()
	switch {
	case from == gateway && u.Hostname() != "": // whatever it calls itself
	case err != nil, host.Is4() != gateway.Is4():
		return nil, errLiteral
	case host.WithZone("") != gateway.WithZone("") && from != gateway && host.WithZone("") != from.WithZone(""):
		return nil, errNotThere
	}
	if !ordinary(gateway, loopback) {
		return nil, errSpecial
	}
	port := uint16(80)
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return nil, errURL
		}
		port = uint16(n)
	}
	u.Host = netip.AddrPortFrom(gateway, port).String()
	u.Fragment, u.RawFragment = "", ""
	return u, nil
}

// ordinary reports whether a can be the address of a gateway on our network.
func ordinary(a netip.Addr, loopback bool) bool {
	if a.IsLoopback() {
		return loopback
	}
	// Not unspecified, multicast or broadcast. Link-local is what a gateway is
	// known by in IPv6, and none is in IPv4.
	return a.IsGlobalUnicast() || a.Is6() && a.IsLinkLocalUnicast()
}
