package nat

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/peerws/peerws/internal/natlab"
)

const xmlBody = "<?xml version=\"1.0\"?>\r\n<root a=\"b\"><device/></root>\r\n"

// What net/http refuses whole and devices send.
func TestParseAnswer(t *testing.T) {
	n := len(xmlBody)
	length := fmt.Sprintf("Content-Length: %d\r\n", n)
	chunked := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	for _, c := range []struct {
		name, in string
		body     string
		whole    completeness // while the connection is open
	}{
		{"ordinary", "HTTP/1.1 200 OK\r\n" + length + "\r\n" + xmlBody, xmlBody, answerWhole},
		{"HTTP/1.0 without a length", "HTTP/1.0 200 OK\r\n\r\n" + xmlBody, xmlBody, answerMaybe},
		{"line feeds only", "HTTP/1.1 200 OK\n" + strings.ReplaceAll(length, "\r", "") + "\n" + xmlBody, xmlBody, answerWhole},
		{"status without words", "HTTP/1.1 200\r\n" + length + "\r\n" + xmlBody, xmlBody, answerWhole},
		{"empty line first", "\r\nHTTP/1.1 200 OK\r\n" + length + "\r\n" + xmlBody, xmlBody, answerWhole},
		{"interim answer first", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n" + length + "\r\n" + xmlBody, xmlBody, answerWhole},
		{"line without a colon", "HTTP/1.1 200 OK\r\nEXT\r\n" + length + "\r\n" + xmlBody, xmlBody, answerWhole},
		{"newline in a value", "HTTP/1.1 200 OK\r\nServer: x UPnP/1.0\n10-30-2006\r\n" + length + "\r\n" + xmlBody, xmlBody, answerWhole},
		{"space before the colon", "HTTP/1.1 200 OK\r\nContent-Length : " + fmt.Sprint(n) + "\r\n\r\n" + xmlBody, xmlBody, answerWhole},
		{"folded line", "HTTP/1.1 200 OK\r\nServer: a\r\n b\r\n" + length + "\r\n" + xmlBody, xmlBody, answerWhole},
		{"length too large", fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", n+13) + xmlBody, xmlBody, answerMaybe},
		{"length too small", fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", n-9) + xmlBody, xmlBody, answerWhole},
		{"length too small, not all there", fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", n-9) + xmlBody[:n-5], xmlBody[:n-5], answerMaybe},
		{"length of nonsense", "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n" + xmlBody, xmlBody, answerMaybe},
		{"two lengths", "HTTP/1.1 200 OK\r\n" + length + "Content-Length: 0\r\n\r\n" + xmlBody, xmlBody, answerWhole},
		{"nothing but a head", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "", answerWhole},
		{"half", "HTTP/1.1 200 OK\r\n" + length + "\r\n" + xmlBody[:n/2], xmlBody[:n/2], answerPart},
		{"chunks", chunked + "5\r\n<root\r\n8;x=y\r\n></root>\r\n0\r\n\r\n", "<root></root>", answerWhole},
		{"chunks of upper case", chunked + "000D\n<root></root>\n0\n\n", "<root></root>", answerWhole},
		{"chunks cut off", chunked + "5\r\n<root\r\n9\r\n></ro", "<root></ro", answerPart},
		{"last chunk missing", chunked + "D\r\n<root></root>\r\n", "<root></root>", answerPart},
		{"chunk size of nonsense", chunked + "5\r\n<root\r\nxyz\r\n", "<root", answerWhole},
		{"not chunked at all", chunked + xmlBody, xmlBody, answerWhole},
		{"NUL behind the end", "HTTP/1.1 200 OK\r\n" + fmt.Sprintf("Content-Length: %d\r\n\r\n", n+1) + xmlBody + "\x00", xmlBody + "\x00", answerWhole},
	} {
		a, whole, err := parseAnswer([]byte(c.in), false)
		if err != nil || whole != c.whole || a.status != 200 || string(a.body) != c.body {
			t.Errorf("%s: %d %q, %v, %v", c.name, a.status, a.body, whole, err)
		}
		a, whole, err = parseAnswer([]byte(c.in), true)
		if err != nil || whole != answerWhole || a.status != 200 || string(a.body) != c.body {
			t.Errorf("%s, at the end: %d %q, %v, %v", c.name, a.status, a.body, whole, err)
		}
		for i := range len(c.in) { // no part of it is an error, nor the whole if the rest is missing
			if _, whole, err := parseAnswer([]byte(c.in[:i]), false); err != nil || whole == answerWhole && !strings.HasPrefix(c.in[i:], "\r") && !strings.Contains(c.name, "nonsense") && strings.TrimSpace(strings.Trim(c.in[i:], "\x000")) != "" {
				t.Errorf("%s, %d bytes of it: %v, %v", c.name, i, whole, err)
				break
			}
		}
	}
	for _, bad := range []string{"\x16\x03\x01\x00\n", "220 ftp\r\n", "HTTP/1.1\r\n", "HTTP/1.1 2000 OK\r\n", "HTTP/1.1 abc\r\n", "HTTP/1.1 099 x\r\n", strings.Repeat("x", maxHead+1), "HTTP/1.1 200 OK\r\n" + strings.Repeat("a: b\r\n", maxHead/6+1)} {
		if _, _, err := parseAnswer([]byte(bad), false); err == nil {
			t.Errorf("%.40q is an answer", bad)
		}
	}
	if _, _, err := parseAnswer([]byte("HTTP/1.1 200 OK\r\nA"), true); err == nil {
		t.Error("half a head is an answer")
	}
}

// Where net/http reads an answer whose body is XML as well, it reads the same.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<root></root>", "HTTP/1.0 200 OK\r\n\r\n<a>", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nd\r\n<root></root>\r\n0\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 No\r\nEXT\r\nServer: a\nb\r\n\r\n<a/>", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<root></root>\x00",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bytes.Clone(b)
		a, whole, err := parseAnswer(b, true)
		if !bytes.Equal(b, in) {
			t.Fatal("bytes were changed")
		}
		if err == nil && (whole != answerWhole || len(a.body) > len(b) || a.status < 100 || a.status > 999) {
			t.Fatalf("%+v, %v", a, whole)
		}
		r, bad := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), nil)
		if bad != nil || r.StatusCode < 200 || r.StatusCode == 204 || r.StatusCode == 304 || len(r.TransferEncoding) == 0 && r.ContentLength < 0 && r.Header.Get("Content-Length") != "" {
			return
		}
		body, bad := io.ReadAll(r.Body)
		if bad != nil || !closedXML(body) || len(b) > maxHead {
			return
		}
		if err != nil || a.status != r.StatusCode || !bytes.Equal(a.body, body) {
			t.Fatalf("net/http reads %d %q, we %d %q, %v", r.StatusCode, body, a.status, a.body, err)
		}
	})
}

// Devices whose HTTP net/http does not take map all the same, in good time.
func TestUPnPSloppyHTTP(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"line without a colon": "HTTP/1.1 200 OK\r\nEXT\r\nContent-Length: %d\r\n\r\n%s",
		"newline in a value":   "HTTP/1.1 200 OK\r\nServer: x UPnP/1.0\n10-30-2006\r\nContent-Length: %d\r\n\r\n%s",
		"length too large":     "HTTP/1.1 200 OK\r\nContent-Length: 1%d\r\n\r\n%s",
		"length too small":     "HTTP/1.1 200 OK\r\nContent-Length: 30\r\nX: %d\r\n\r\n%s",
		"cut-off chunks":       "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: %d\r\n\r\nFFFF\r\n%s",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, open := range []bool{false, true} { // the connection, afterwards
				_, u := startUPnP(t, natlab.FakeUPnP{HTTP: func(w http.ResponseWriter, r *http.Request) bool {
					if r.Method != http.MethodGet {
						return false
					}
					body := describeXML("", urnIP1, "/ctl/0")
					c, b, err := http.NewResponseController(w).Hijack()
					if err != nil {
						return false
					}
					defer c.Close()
					fmt.Fprintf(b, answer, len(body), body)
					b.Flush()
					if open && name != "cut-off chunks" {
						io.Copy(io.Discard, c)
					}
					return true
				}})
				if _, err := u.Map(t.Context(), request(9000)); err != nil {
					t.Errorf("open %v: %v", open, err)
				}
			}
		})
	}
}
