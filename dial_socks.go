package peerws

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"strconv"
)

// SOCKS version 5 (RFC 1928) as far as a client that connects needs it, with
// user and password (RFC 1929). The append and parse functions are pure.
//
// golang.org/x/net/proxy does the same, but makes the transport itself, and ends
// by taking away the deadline, which here is that of the whole dial; its failures
// are texts without the number.

const (
	socksVersion     = 5
	socksConnectTCP  = 1
	socksNoAuth      = 0x00
	socksPassword    = 0x02
	socksPasswordVer = 1
	socksIPv4        = 1
	socksName        = 3
	socksIPv6        = 4
	socksReplyHead   = 5   // the part of a reply that tells its size
	maxSOCKSString   = 255 // bytes of a user, a password or a name
)

var (
	errSOCKSVersion  = errors.New("answer is not SOCKS version 5")
	errSOCKSMethod   = errors.New("proxy accepts none of the ways to log in")
	errSOCKSPassword = errors.New("proxy refused user and password")
	errSOCKSLogin    = errors.New("user or password is longer than 255 bytes, or there is no user")
	errSOCKSAddress  = errors.New("answer has an unknown kind of address")
	errSOCKSName     = errors.New("host name is longer than 255 bytes")
)

// socksFailures are the replies of RFC 1928 §6.
var socksFailures = [...]string{
	1: "general failure",
	2: "not allowed by its rules",
	3: "network unreachable",
	4: "host unreachable",
	5: "connection refused",
	6: "TTL expired",
	7: "command not supported",
	8: "kind of address not supported",
}

// appendSOCKSGreeting appends VER, NMETHODS, METHODS.
func appendSOCKSGreeting(b []byte, login bool) []byte {
	if login {
		return append(b, socksVersion, 2, socksNoAuth, socksPassword)
	}
	return append(b, socksVersion, 1, socksNoAuth)
}

// parseSOCKSMethod takes VER, METHOD.
func parseSOCKSMethod(b [2]byte, login bool) (method byte, err error) {
	switch {
	case b[0] != socksVersion:
		return 0, errSOCKSVersion
	case b[1] == socksNoAuth, b[1] == socksPassword && login:
		return b[1], nil
	}
	return 0, errSOCKSMethod
}

// appendSOCKSLogin appends VER, ULEN, UNAME, PLEN, PASSWD.
func appendSOCKSLogin(b []byte, user, password string) ([]byte, error) {
	if user == "" || len(user) > maxSOCKSString || len(password) > maxSOCKSString {
		return nil, errSOCKSLogin
	}
	b = append(b, socksPasswordVer, byte(len(user)))
	b = append(b, user...)
	b = append(b, byte(len(password)))
	return append(b, password...), nil
}

// appendSOCKSRequest appends VER, CMD, RSV, ATYP, DST.ADDR, DST.PORT. A name goes
// as it is: the proxy looks it up.
func appendSOCKSRequest(b []byte, host string, port uint16) ([]byte, error) {
	b = append(b, socksVersion, socksConnectTCP, 0)
	ip, err := netip.ParseAddr(host)
	ip = ip.Unmap()
	switch {
	case err != nil && len(host) > maxSOCKSString:
		return nil, errSOCKSName
	case err != nil:
		b = append(b, socksName, byte(len(host)))
		b = append(b, host...)
	case ip.Is4():
		b = append(b, socksIPv4)
		b = append(b, ip.AsSlice()...)
	default:
		b = append(b, socksIPv6)
		b = append(b, ip.AsSlice()...)
	}
	return append(b, byte(port>>8), byte(port)), nil
}

// socksReplySize takes the start of VER, REP, RSV, ATYP, BND.ADDR, BND.PORT and
// returns the size of all of it, or why the proxy has not connected.
func socksReplySize(b [socksReplyHead]byte) (int, error) {
	if b[0] != socksVersion {
		return 0, errSOCKSVersion
	}
	if code := int(b[1]); code != 0 {
		text := "unknown failure"
		if code < len(socksFailures) {
			text = socksFailures[code]
		}
		return 0, fmt.Errorf("proxy has not connected: %s (%d)", text, code)
	}
	switch b[3] {
	case socksIPv4:
		return 4 + 4 + 2, nil
	case socksIPv6:
		return 4 + 16 + 2, nil
	case socksName:
		return 4 + 1 + int(b[4]) + 2, nil
	}
	return 0, errSOCKSAddress
}

// socksConnect has a proxy connect to addr. It reads not one byte too many: what
// follows is the other end's.
func socksConnect(conn io.ReadWriter, user *url.Userinfo, addr string) error {
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return err
	}
	request, err := appendSOCKSRequest(nil, host, uint16(port))
	if err != nil {
		return err
	}
	var login []byte
	if user != nil {
		password, _ := user.Password()
		if login, err = appendSOCKSLogin(nil, user.Username(), password); err != nil {
			return err
		}
	}

	if _, err := conn.Write(appendSOCKSGreeting(nil, login != nil)); err != nil {
		return err
	}
	var two [2]byte
	if _, err := io.ReadFull(conn, two[:]); err != nil {
		return err
	}
	method, err := parseSOCKSMethod(two, login != nil)
	if err != nil {
		return err
	}
	if method == socksPassword {
		if _, err := conn.Write(login); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, two[:]); err != nil {
			return err
		}
		if two[0] != socksPasswordVer || two[1] != 0 {
			return errSOCKSPassword
		}
	}
	if _, err := conn.Write(request); err != nil {
		return err
	}
	// A failure need not have an address behind it.
	var reply [4 + 1 + maxSOCKSString + 2]byte
	if _, err := io.ReadFull(conn, reply[:2]); err != nil {
		return err
	}
	if _, err := socksReplySize([socksReplyHead]byte{reply[0], reply[1], 0, socksIPv4}); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, reply[2:socksReplyHead]); err != nil {
		return err
	}
	size, err := socksReplySize([socksReplyHead]byte(reply[:]))
	if err != nil {
		return err
	}
	_, err = io.ReadFull(conn, reply[socksReplyHead:size])
	return err
}
