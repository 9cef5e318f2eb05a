package nat

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// A tolerant reader of HTTP answers. Devices send header lines without a colon,
// values with a newline in them, lengths that are wrong and chunks that end too
// soon, and mean well; net/http rightly takes none of that. What is here is pure;
// the connection is in device.go.

// maxHead bounds the head of an answer, in bytes.
const maxHead = 16 << 10

// An httpAnswer is what of a device's HTTP answer matters.
type httpAnswer struct {
	status int
	header http.Header
	body   []byte
}

// A completeness is how much of an answer is there.
type completeness int

const (
	answerPart  completeness = iota // more is to come
	answerMaybe                     // if nothing more comes, and the connection stays open, that was all
	answerWhole
)

// parseAnswer reads what has come of an answer so far, a window into b. end says
// that nothing more will come. An error means that it never will make sense.
func parseAnswer(b []byte, end bool) (httpAnswer, completeness, error) {
	a, rest, ok, err := parseAnswerHead(b)
	switch {
	case err != nil:
		return a, answerPart, err
	case !ok && end:
		return a, answerPart, fmt.Errorf("an answer that ends in its head")
	case !ok:
		return a, answerPart, nil
	case 100 <= a.status && a.status < 200 && a.status != http.StatusSwitchingProtocols: // an interim one
		return parseAnswer(rest, end)
	}
	whole := answerPart
	if end {
		whole = answerWhole
	}
	if strings.Contains(strings.ToLower(a.header.Get("Transfer-Encoding")), "chunked") {
		body, last := joinChunks(rest)
		if last {
			whole = answerWhole
		}
		a.body = body
		return a, whole, nil
	}
	a.body = rest
	n, err := strconv.ParseUint(strings.TrimSpace(a.header.Get("Content-Length")), 10, 31)
	switch {
	case err != nil: // then the end of the connection is that of the body
		if whole == answerPart && closedXML(rest) {
			whole = answerMaybe
		}
	case uint64(len(rest)) < n:
		if whole == answerPart && closedXML(rest) {
			whole = answerMaybe // a length that is too large
		}
	case n == 0 || closedXML(rest[:n]):
		a.body, whole = rest[:n], answerWhole
	case closedXML(rest): // a length that is too small
		whole = answerWhole
	case whole == answerPart:
		whole = answerMaybe
	}
	return a, whole, nil
}

// parseAnswerHead reads the status line and the fields; ok is false while the
// empty line behind them has not come. A line that is not a field is left out.
func parseAnswerHead(b []byte) (a httpAnswer, rest []byte, ok bool, err error) {
	a.header = make(http.Header)
	first := true
	for at := 0; ; {
		i := bytes.IndexByte(b[at:], '\n')
		switch {
		case i >= 0 && at+i <= maxHead:
		case i >= 0 || len(b) > maxHead:
			return a, nil, false, fmt.Errorf("the head of the answer is too large")
		default:
			return a, nil, false, nil
		}
		line := strings.TrimRight(string(b[at:at+i]), "\r")
		at += i + 1
		if first {
			if strings.TrimSpace(line) == "" {
				continue // left over from an answer before
			}
			if a.status, err = parseStatusLine(line); err != nil {
				return a, nil, false, err
			}
			first = false
			continue
		}
		if line == "" {
			return a, b[at:], true, nil
		}
		if name, value, field := strings.Cut(line, ":"); field {
			a.header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
		}
	}
}

// parseStatusLine returns the status of a line such as "HTTP/1.1 200 OK".
func parseStatusLine(line string) (int, error) {
	f := strings.Fields(line)
	if len(f) < 2 || len(f[0]) < 5 || !strings.EqualFold(f[0][:5], "HTTP/") || len(f[1]) != 3 {
		return 0, fmt.Errorf("an answer that begins with %.40q", line)
	}
	n, err := strconv.Atoi(f[1])
	if err != nil || n < 100 {
		return 0, fmt.Errorf("an answer with status %q", f[1])
	}
	return n, nil
}

// joinChunks returns what the chunks of a body hold (RFC 9112 §7.1), and whether
// the last one has come. What is cut off, or no chunk, ends it.
func joinChunks(b []byte) (body []byte, last bool) {
	for {
		line, rest, ok := bytes.Cut(b, []byte("\n"))
		if !ok {
			return body, false
		}
		size, _, _ := strings.Cut(string(line), ";")
		n, err := strconv.ParseUint(strings.TrimSpace(size), 16, 31)
		switch {
		case err != nil && len(body) == 0:
			return b, closedXML(b) // it is not chunked at all
		case err != nil || n == 0:
			return body, true
		case uint64(len(rest)) <= n:
			return append(body, rest...), false
		}
		body = append(body, rest[:n]...)
		b = bytes.TrimLeft(rest[n:], "\r\n")
	}
}

// closedXML reports whether b ends with the end of its first element.
func closedXML(b []byte) bool {
	end := bytes.TrimRight(b, " \t\r\n\x00")
	if !bytes.HasSuffix(end, []byte(">")) {
		return false
	}
	for i := 0; ; {
		k := bytes.IndexByte(b[i:], '<')
		if k < 0 || i+k+1 >= len(b) {
			return false
		}
		if i += k + 1; b[i] == '?' || b[i] == '!' {
			continue
		}
		n := bytes.IndexAny(b[i:], " \t\r\n/>")
		if n <= 0 {
			return false
		}
		end = bytes.TrimRight(end[:len(end)-1], " \t\r\n")
		return bytes.HasSuffix(end, append([]byte("</"), b[i:i+n]...))
	}
}

// response is the answer as net/http has it.
func (a httpAnswer) response(r *http.Request) *http.Response {
	return &http.Response{
		Status: fmt.Sprintf("%d %s", a.status, http.StatusText(a.status)), StatusCode: a.status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: a.header, Request: r,
	}
}
