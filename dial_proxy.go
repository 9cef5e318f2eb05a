package peerws

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
)

// The way through a proxy: the tunnel that CONNECT makes (RFC 9110 §9.3.6), or
// SOCKS version 5.

// proxyFor asks the program, or the environment, for the proxy of an attempt.
func (d *Dialer) proxyFor(ctx context.Context, a *attempt) (*url.URL, error) {
	ask := d.Proxy
	if ask == nil {
		ask = http.ProxyFromEnvironment
	}
	u := *a.url
	u.Scheme = map[string]string{"ws": "http", "wss": "https"}[u.Scheme]
	header := d.Header.Clone()
	if header == nil {
		header = http.Header{}
	}
	r := &http.Request{
		Method: http.MethodGet, URL: &u, Host: u.Host, Header: header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	proxy, err := ask(r.WithContext(ctx))
	if err != nil || proxy == nil {
		return nil, err
	}
	switch {
	case proxyPorts[proxy.Scheme] == "":
		return nil, fmt.Errorf("proxy scheme %q is none of http, https, socks5 and socks5h", proxy.Scheme)
	case proxy.Hostname() == "":
		return nil, errors.New("proxy URL has no host")
	}
	return proxy, nil
}

// proxyPorts are the kinds of proxies, with the port of one that has none.
var proxyPorts = map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}

func proxyAddr(proxy *url.URL) string {
	port := proxy.Port()
	if port == "" {
		port = proxyPorts[proxy.Scheme]
	}
	return net.JoinHostPort(proxy.Hostname(), port)
}

// tunnel has the proxy at the other end of conn connect to addr. What it
// returns is the connection to that, or with an error what is to be closed. The
// deadlines are the caller's.
func (d *Dialer) tunnel(ctx context.Context, conn net.Conn, proxy *url.URL, addr string) (net.Conn, error) {
	switch proxy.Scheme {
	case "socks5", "socks5h":
		return conn, socksConnect(conn, proxy.User, addr)
	case "https":
		t, err := d.startTLS(ctx, conn, proxy.Hostname(), func(*tls.Config) {})
		if err != nil {
			return t, err
		}
		conn = t
	}
	return d.connectHTTP(conn, proxy.User, addr)
}

// connectHTTP asks an HTTP proxy for a tunnel.
func (d *Dialer) connectHTTP(conn net.Conn, user *url.Userinfo, addr string) (net.Conn, error) {
	req := fmt.Appendf(nil, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n", addr, addr)
	if user != nil {
		password, _ := user.Password()
		req = fmt.Appendf(req, "Proxy-Authorization: Basic %s\r\n", base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)))
	}
	if _, err := conn.Write(append(req, "\r\n"...)); err != nil {
		return conn, err
	}
	most := d.maxHead()
	b := newBuffer(most)
	defer b.free()
	size, err := readAnswer(conn, b, most)
	if r, ok := err.(*refusal); ok {
		return conn, &HandshakeError{Reason: "the proxy's answer is not HTTP/1.1, or larger than MaxHeaderBytes", Err: r}
	} else if err != nil {
		return conn, err
	}
	var h head // of HTTP/1.0 from many proxies; a tunnel is the same in both
	status, err := h.parseResponse(b.b[:size])
	if err != nil {
		return conn, &HandshakeError{Reason: "the proxy's answer is malformed", Err: err}
	}
	if status < 200 || status > 299 {
		e := &HandshakeError{Reason: fmt.Sprintf("the proxy answered %d %s", status, http.StatusText(status))}
		e.explain(conn, b.b[:size], b.b[size:])
		return conn, e
	}
	if rest := b.b[size:]; len(rest) > 0 { // the other end has spoken already
		return &earlyConn{conn, bytes.Clone(rest)}, nil
	}
	return conn, nil
}
