package natlab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// A wsClient is a WebSocket client written from RFC 6455 alone. It shares no
// line with the library, so a misreading cannot agree with itself.
type wsClient struct {
	conn net.Conn
	in   *bufio.Reader
}

// The opcodes of §5.2.
const (
	opText   = 1
	opBinary = 2
	opClose  = 8
)

// dialWS opens the URL through dial, as a program without an Origin does.
func dialWS(dial func(context.Context, string) (net.Conn, error), rawURL string) (*wsClient, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "ws" || u.Port() == "" {
		return nil, fmt.Errorf("%q is no ws URL with a port", rawURL)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := dial(ctx, u.Host)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	nonce := make([]byte, 16)
	rand.Read(nonce)
	key := base64.StdEncoding.EncodeToString(nonce)
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n\r\n", u.RequestURI(), u.Host, key)
	c := &wsClient{conn, bufio.NewReader(conn)}
	response, err := http.ReadResponse(c.in, nil)
	if err != nil {
		conn.Close()
		return nil, err
	}
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	if response.StatusCode != http.StatusSwitchingProtocols ||
		response.Header.Get("Sec-WebSocket-Accept") != base64.StdEncoding.EncodeToString(sum[:]) {
		conn.Close()
		return nil, fmt.Errorf("the handshake's answer: %s %v", response.Status, response.Header)
	}
	return c, nil
}

// send writes one masked, final frame.
func (c *wsClient) send(op byte, payload []byte) error {
	frame := []byte{0x80 | op}
	switch n := len(payload); {
	case n < 126:
		frame = append(frame, 0x80|byte(n))
	case n < 1<<16:
		frame = binary.BigEndian.AppendUint16(append(frame, 0x80|126), uint16(n))
	default:
		frame = binary.BigEndian.AppendUint64(append(frame, 0x80|127), uint64(n))
	}
	var mask [4]byte
	rand.Read(mask[:])
	frame = append(frame, mask[:]...)
	for i, b := range payload {
		frame = append(frame, b^mask[i%4])
	}
	_, err := c.conn.Write(frame)
	return err
}

// receive reads one frame, which must be final, plain and unmasked.
func (c *wsClient) receive() (op byte, payload []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(c.in, head[:]); err != nil {
		return 0, nil, err
	}
	if head[0]&0xf0 != 0x80 || head[1]&0x80 != 0 {
		return 0, nil, fmt.Errorf("frame head %x is not final, plain and unmasked", head)
	}
	length := uint64(head[1])
	if length > 125 {
		extended := make([]byte, 2<<((length-126)*2)) // 2 or 8 bytes
		if _, err := io.ReadFull(c.in, extended); err != nil {
			return 0, nil, err
		}
		length = 0
		for _, b := range extended {
			length = length<<8 | uint64(b)
		}
	}
	if length > 1<<20 {
		return 0, nil, fmt.Errorf("a frame of %d bytes", length)
	}
	payload = make([]byte, length)
	_, err = io.ReadFull(c.in, payload)
	return head[0] & 0x0f, payload, err
}

// echo sends messages of each kind and length form, all before the first
// answer is read, and wants them back in order.
func (c *wsClient) echo() error {
	long := make([]byte, 70_000)
	rand.Read(long)
	messages := []struct {
		op      byte
		payload []byte
	}{
		{opText, []byte("Grüße durch den Router")},
		{opBinary, []byte{0, 0xff, 0x80}},
		{opText, nil},
		{opBinary, long[:300]},
		{opBinary, long},
		{opText, bytes.Repeat([]byte("€"), 5000)},
	}
	for _, m := range messages {
		if err := c.send(m.op, m.payload); err != nil {
			return err
		}
	}
	for i, m := range messages {
		op, payload, err := c.receive()
		if err != nil {
			return fmt.Errorf("echo %d: %w", i, err)
		}
		if op != m.op || !bytes.Equal(payload, m.payload) {
			return fmt.Errorf("echo %d: opcode %d and %d bytes came back for opcode %d and %d bytes", i, op, len(payload), m.op, len(m.payload))
		}
	}
	return nil
}

// awaitClose answers the peer's close frame and returns its code; the peer
// must then end the connection, and so does this side.
func (c *wsClient) awaitClose() (int, error) {
	defer c.conn.Close()
	c.conn.SetDeadline(time.Now().Add(5 * time.Second))
	for {
		op, payload, err := c.receive()
		if err != nil {
			return 0, err
		}
		if op != opClose {
			continue
		}
		if len(payload) < 2 {
			return 0, fmt.Errorf("a close frame of %d bytes", len(payload))
		}
		code := int(binary.BigEndian.Uint16(payload))
		if err := c.send(opClose, payload[:2]); err != nil {
			return code, err
		}
		if _, err := c.in.ReadByte(); err != io.EOF {
			return code, fmt.Errorf("after the closing handshake: %v, want the end of the connection", err)
		}
		return code, nil
	}
}

// close makes the closing handshake from this side.
func (c *wsClient) close() error {
	defer c.conn.Close()
	if err := c.send(opClose, binary.BigEndian.AppendUint16(nil, 1000)); err != nil {
		return err
	}
	op, payload, err := c.receive()
	if err != nil {
		return fmt.Errorf("waiting for the close frame: %w", err)
	}
	if op != opClose || !bytes.Equal(payload, []byte{0x03, 0xe8}) {
		return fmt.Errorf("opcode %d with %x answers close 1000", op, payload)
	}
	if _, err := c.in.ReadByte(); err != io.EOF {
		return fmt.Errorf("after the closing handshake: %v, want the end of the connection", err)
	}
	return nil
}
