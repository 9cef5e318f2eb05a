package peerws

// Every MUST and MUST NOT of RFC 6455 §4, §5, §7 and §8 that an endpoint can
// keep or break, those of §6 and §10 that can be tested, and the test that holds
// it. TestTablesNameTests looks that these tests exist.
//
// Opening handshake, dialling side
//
//	§4.1    URL valid, else fail before any I/O                 TestDial_URL
//	§4.1    GET, HTTP/1.1, target, Host                         TestSection4_1_Request
//	§4.1    Upgrade, Connection, Version 13                     TestSection4_1_Request
//	§4.1    key: 16 random bytes, fresh for each connection     TestSection4_1_Request
//	§4.1    subprotocols unique, tokens                         TestDial_Arguments
//	§4.1    no data before the answer                           TestSection4_1_NothingBeforeTheAnswer
//	§4.1    answer: 101, Upgrade, Connection, Accept            TestSection4_1_Answer, TestDial_AnswerCutOff, TestDial_Garbage, TestDial_Status
//	§4.1    answer: extension or subprotocol not asked for      TestSection4_1_Answer
//	§4.1    failed handshake: transport closed without a frame  TestSection4_1_FailedWithoutAFrame
//	§4.1    TLS: handshake done, SNI, failure ends it           TestTLS_OnePort, TestDial_TLSFails
//	§4.1    proxy by CONNECT, failure ends it                   TestProxy_Connect, TestProxy_Refuses
//	§4.1    one connection CONNECTING per host                  not kept, see below
//
// Opening handshake, listening side
//
//	§4.2.1  request line, Host, Upgrade, Connection, key, version  TestSection4_2_1_BadRequests, TestRefusals_OverTCP
//	§4.2.1  tokens in any case, lists                            TestGoodRequests_OverTCP
//	§4.2.2  status line, Upgrade, Connection, Accept             TestSection4_2_2_Answer, TestSection1_3_Accept
//	§4.2.2  Origin looked at, else 403                           TestSection10_2_Origin
//	§4.2.2  subprotocol: one of the client's or none             TestSection4_2_2_Subprotocols
//	§4.2.2  extension: none that was not offered                 TestGoodRequests_OverTCP, TestSection4_2_2_Answer
//	§4.2.2  version not spoken: 426 with ours                    TestSection4_4_Versions
//	§4.3    header grammar                                       TestRFC9112_Section5_Fields, TestHead_EverySplit
//
// Frames
//
//	§5.1    dialling side masks every frame, the other none      TestSection5_1_EveryFrame
//	§5.1    frame with the wrong masking fails the connection    TestFailConnection_Masking, TestSection7_1_7_BothRoles
//	§5.2    FIN, opcode, length forms as sent                    TestSection5_2_FramesAsSent
//	§5.2    RSV bits without an extension                        TestFailConnection_ReservedBits, TestSection7_1_7_BothRoles
//	§5.2    reserved opcodes                                     TestSection5_2_OpcodesAndReservedBits, TestSection7_1_7_BothRoles
//	§5.2    shortest length form, top bit 0                      TestSection5_2_MinimalLength, TestSection5_2_LengthTopBit, TestSection7_1_7_BothRoles
//	§5.3    key fresh, unpredictable                             TestSection5_1_EveryFrame, TestSection5_3_FreshKeys, TestSection5_3_MaskKeysDiffer
//	§5.3    masking algorithm                                    TestSection5_3_Masking, TestSection5_3_MaskingInPieces
//	§5.4    fragments in order, whole messages                   TestSection5_4_Fragmentation, TestSection5_2_FramesAsSent
//	§5.4    fragments of two messages not interleaved: sent      TestNextWriter_OthersWait, TestSenders_KeepTheirOrder
//	§5.4    fragments of two messages not interleaved: received  TestFailConnection_MessageInsideMessage, TestSection7_1_7_BothRoles
//	§5.4    control frames inside a message handled              TestSection5_4_ControlFramesInside
//	§5.4    continuation without a beginning                     TestFailConnection_UnexpectedContinuation, TestSection7_1_7_BothRoles
//	§5.5    control frames: 125 bytes, not fragmented            TestSection5_5_ControlFrames, TestSection7_1_7_BothRoles
//	§5.5.1  Close: body, code, UTF-8 reason                      TestSection5_5_1_Close, TestFailConnection_CloseFrame
//	§5.5.1  nothing is sent behind a Close                       TestSection5_5_1_NothingBehindClose
//	§5.5.1  a Close is answered, with its code                   TestSection5_5_1_EveryCodeIsEchoed, TestClosingHandshake_PeerFirst
//	§5.5.1  a Close inside a message that is read in pieces      TestSection5_5_1_CloseInsideMessage
//	§5.5.2  Ping is answered, unless a Close came                TestSection5_5_2_PongHasThePingsData, TestSection5_5_1_NothingBehindClose
//	§5.5.3  Pong has the Ping's data; the newest may do          TestSection5_5_2_PongHasThePingsData, TestBackPressure_RawPath
//	§5.5.3  unasked Pong needs no answer                         TestSection5_5_3_UnaskedPong
//	§5.6    text is UTF-8, binary anything                       TestSection8_1_UTF8_RightText, TestSend_Arguments
//	§5.7    the examples                                         TestSection5_7_Examples, TestSection5_7_Messages, TestSection5_7_Echo
//	§5.8    no extension without agreement                       TestFailConnection_ReservedBits, TestSection4_1_Answer
//
// Sending and receiving
//
//	§6.1    only in OPEN                                         TestSection4_1_NothingBeforeTheAnswer, TestSection5_5_1_NothingBehindClose
//	§6.2    payload of the fragments joined, unmasked            TestSection5_4_Fragmentation, TestEverySplit
//
// Closing
//
//	§7.1.1  the listening side ends the transport first          TestSection7_1_1_WhoEndsTheTransport
//	§7.1.1  nothing is lost by that                              TestClose_UnreadBytesDoNotReset
//	§7.1.2  Close of both at the same time                       TestSection7_1_2_AtTheSameTime
//	§7.1.4  clean only after both Close frames                   TestSection7_1_5_CodeAndReason
//	§7.1.5  code of the first Close: 1005 without, 1006 if none  TestSection7_1_5_CodeAndReason
//	§7.1.6  reason of the first Close                            TestSection7_1_5_CodeAndReason
//	§7.1.7  fail: Close with a code, then nothing counts         TestSection7_1_7_BothRoles, TestFailConnection
//	§7.2.1  the dialling side fails what is not as agreed        TestSection7_1_7_BothRoles
//	§7.2.2  abort                                                TestAbort_WhileCallbackBlocks, TestAbort_Races
//	§7.3    no Close frame at any time but a closing handshake   TestSection5_2_FramesAsSent
//	§7.4.1  1004, 1005, 1006, 1015 are never sent                TestCloseWith_Arguments, TestSection5_5_1_EveryCodeIsEchoed
//	§7.4.2  ranges                                               TestSection7_4_CloseCodes
//	§8.1    text that is not UTF-8 fails the connection          TestSection8_1_FirstWrongByte, TestFailConnection_UTF8
//
// Security considerations
//
//	§10.1, §10.2  peers that are no browsers, Origin             TestSection10_2_Origin
//	§10.3   keys that cannot be foreseen                         TestSection5_3_MaskKeysDiffer
//	§10.4   limits on frame and message                          TestFailConnection_MaxMessageSize, TestFailConnection_MaxFragments
//	§10.6   TLS                                                  TestTLS_OnePort
//
// Not kept: §4.1 has a client wait while another connection of it to the same
// address is CONNECTING. That keeps web pages from flooding a host; a program
// here that dials many peers at once, or one through a slow proxy, means it.

import (
	"bufio"
	"bytes"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// The tables in comments of our tests name only tests that exist.
func TestTablesNameTests(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	kernels, err := filepath.Glob("internal/[mu]*/*_test.go") // mask and utf8check
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, kernels...)
	exists := map[string]bool{}
	named := map[string]string{}
	name := regexp.MustCompile(`\b(Test|Fuzz|Benchmark)[A-Z0-9]\w*`)
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if d, ok := d.(*ast.FuncDecl); ok && d.Recv == nil {
				exists[d.Name.Name] = true
			}
		}
		for _, c := range f.Comments {
			for line := range strings.Lines(c.Text()) {
				for _, n := range name.FindAllString(line, -1) {
					named[n] = file
				}
			}
		}
	}
	// A test that no file here has lies in one with another build tag's system.
	for n, file := range named {
		if !exists[n] && n != "TestMain" {
			t.Errorf("%s names %s, which does not exist", file, n)
		}
	}
	src, err := os.ReadFile("rfc6455_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(src)) {
		if strings.HasPrefix(line, "//\t§") && !name.MatchString(line) && !strings.Contains(line, "not kept") {
			t.Errorf("no test for %q", line)
		}
	}
}

// connecting starts a dial to a listener by hand that has read the request and
// has not answered.
func connecting(t *testing.T) (c *WebSocket, r *recorder, conn *memnet.Conn, q *http.Request) {
	ln := memnet.Listen(0)
	t.Cleanup(func() { ln.Close() })
	c, err := Dialer{NetDial: ln.DialContext}.NewWebSocket("ws://a/")
	if err != nil {
		t.Fatal(err)
	}
	r = new(recorder)
	r.attach(c)
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn = accepted.(*memnet.Conn)
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	var raw []byte
	for b := make([]byte, 1); !strings.HasSuffix(string(raw), "\r\n\r\n"); raw = append(raw, b[0]) {
		if _, err := io.ReadFull(conn, b); err != nil {
			t.Fatal(err)
		}
	}
	q, err = http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
	if err != nil {
		t.Fatal(err)
	}
	return c, r, conn, q
}

func TestSection4_1_NothingBeforeTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, r, conn, q := connecting(t)
		if err := c.SendText("early"); err != ErrNotOpen {
			t.Errorf("SendText: %v", err)
		}
		if err := c.Write(t.Context(), Message{Type: Text, Data: nil}); err != ErrNotOpen {
			t.Errorf("Write: %v", err)
		}
		if _, err := c.NextWriter(t.Context(), Text); err != ErrNotOpen {
			t.Errorf("NextWriter: %v", err)
		}
		if _, err := c.Ping(t.Context()); err != ErrNotOpen {
			t.Errorf("Ping: %v", err)
		}
		if err := c.Flush(t.Context()); err != ErrNotOpen {
			t.Errorf("Flush: %v", err)
		}
		synctest.Wait()
		if n := conn.Buffered(); n != 0 || c.ReadyState() != Connecting {
			t.Errorf("%d bytes behind the request, %v", n, c.ReadyState())
		}
		io.WriteString(conn, accepts(q, "", ""))
		synctest.Wait()
		if n := conn.Buffered(); n != 0 || c.ReadyState() != Open {
			t.Errorf("%d bytes nobody sent, %v", n, c.ReadyState())
		}
		r.want(t, "open")
		conn.Close()
		<-c.Done()
	})
}

// §7.1.7: before the connection is established no Close frame is sent.
func TestSection4_1_FailedWithoutAFrame(t *testing.T) {
	for name, f := range map[string]func(c *WebSocket, conn net.Conn, q *http.Request){
		"wrong accept": func(_ *WebSocket, conn net.Conn, q *http.Request) {
			io.WriteString(conn, strings.Replace(accepts(q, "", ""), "Accept: ", "Accept: x", 1)+hello)
		},
		"status 200": func(_ *WebSocket, conn net.Conn, q *http.Request) {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		},
		"extension": func(_ *WebSocket, conn net.Conn, q *http.Request) {
			io.WriteString(conn, accepts(q, "Sec-WebSocket-Extensions: permessage-deflate\r\n", ""))
		},
		"subprotocol": func(_ *WebSocket, conn net.Conn, q *http.Request) {
			io.WriteString(conn, accepts(q, "Sec-WebSocket-Protocol: chat\r\n", ""))
		},
		"closed by the program": func(c *WebSocket, _ net.Conn, _ *http.Request) { c.CloseWith(1000, "changed my mind") },
	} {
		t.Run(name, func(t *testing.T) {
			c, r, conn, q := connecting(t)
			f(c, conn, q)
			if b, err := io.ReadAll(conn); err != nil || len(b) > 0 {
				t.Errorf("got % x, %v", b, err)
			}
			conn.Close()
			ev := waitDone(t, c)
			if ev.Code != 1006 || ev.WasClean || ev.Err == nil {
				t.Errorf("%+v", ev)
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			if len(r.list) != 2 || !strings.HasPrefix(r.list[0], "error ") || !strings.HasPrefix(r.list[1], "close 1006 ") {
				t.Errorf("%q", r.list)
			}
		})
	}
}

// A code that only a listener may use is refused while the role's own fields are
// still being set; the race detector looks.
func TestCloseWith_WhileConnecting(t *testing.T) {
	for range 50 {
		c, _, conn, q := connecting(t)
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			io.WriteString(conn, accepts(q, "", ""))
		}()
		for {
			if err := c.CloseWith(1001, ""); err == nil {
				t.Fatal("1001 from the dialling side")
			}
			if c.ReadyState() == Open {
				break
			}
		}
		<-answered
		conn.Close()
		waitDone(t, c)
	}
}

// §4.4: who speaks another version is told ours.
func TestSection4_4_Versions(t *testing.T) {
	l := openPort(t, ListenConfig{})
	for _, v := range []string{"0", "8", "12", "14", "255", ""} {
		r, _ := knock(t, l, swap(versionLine, "Sec-WebSocket-Version: "+v+"\r\n")).wantRefusal(426)
		if got := r.Header.Get("Sec-WebSocket-Version"); got != "13" {
			t.Errorf("version %q: Sec-WebSocket-Version is %q", v, got)
		}
	}
}

func TestSection5_1_EveryFrame(t *testing.T) {
	onBoth(t, testSettings(), func(t *testing.T, c *WebSocket, r *recorder, s side) {
		const rounds = 50
		go func() {
			for range rounds {
				c.SendText("Hello")
				c.SendBinary(nil)
				c.Write(t.Context(), Message{Type: Binary, Data: make([]byte, 5000)})
				c.ping([]byte("p"))
				w, _ := c.NextWriter(t.Context(), Binary)
				w.Write(make([]byte, 5000))
				w.Close()
			}
			c.Write(t.Context(), Message{Type: Binary, Data: make([]byte, 200_000)})
			c.Flush(t.Context())
			c.CloseWith(1000, "")
		}()
		n := 0
		for {
			f, err := s.next() // it checks the mask bit
			if err != nil {
				t.Fatal(err)
			}
			if n++; f == close1000 {
				break
			}
			if n == 10 {
				s.send("\x89\x01x") // a Pong is one of them
			}
		}
		if n < rounds*6+5 {
			t.Errorf("%d frames", n)
		}
		if s.dialled && len(s.keys) < n-1 {
			t.Errorf("%d different keys in %d frames", len(s.keys), n)
		}
	})
}

// §5.2, §5.4: what goes out, in the shortest form, and cut as we cut.
func TestSection5_2_FramesAsSent(t *testing.T) {
	onBoth(t, testSettings(), func(t *testing.T, c *WebSocket, r *recorder, s side) {
		x := strings.Repeat("x", 200_000)
		for _, tc := range []struct {
			m      Message
			frames []string
		}{
			{Message{Type: Text, Data: nil}, []string{"\x81\x00"}},
			{Message{Type: Binary, Data: nil}, []string{"\x82\x00"}},
			{Message{Type: Text, Data: []byte("Hello")}, []string{"\x81\x05Hello"}},
			{Message{Type: Binary, Data: []byte(x[:125])}, []string{"\x82\x7d" + x[:125]}},
			{Message{Type: Binary, Data: []byte(x[:126])}, []string{"\x82\x7e\x00\x7e" + x[:126]}},
			{Message{Type: Text, Data: []byte(x[:65535])}, []string{"\x81\x7e\xff\xff" + x[:65535]}},
			{Message{Type: Text, Data: []byte(x[:65536])}, []string{"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00" + x[:65536]}},
			{Message{Type: Text, Data: []byte(x[:131072])}, []string{"\x81\x7f\x00\x00\x00\x00\x00\x02\x00\x00" + x[:131072]}},
			{Message{Type: Text, Data: []byte(x[:131073])}, []string{
				"\x01\x7f\x00\x00\x00\x00\x00\x01\x00\x00" + x[:65536],
				"\x00\x7f\x00\x00\x00\x00\x00\x01\x00\x00" + x[:65536], "\x80\x01x",
			}},
			{Message{Type: Binary, Data: []byte(x[:196608])}, []string{
				"\x02\x7f\x00\x00\x00\x00\x00\x01\x00\x00" + x[:65536],
				"\x00\x7f\x00\x00\x00\x00\x00\x01\x00\x00" + x[:65536],
				"\x80\x7f\x00\x00\x00\x00\x00\x01\x00\x00" + x[:65536],
			}},
		} {
			if err := c.Send(tc.m); err != nil {
				t.Fatal(err)
			}
			s.want(strconv.Itoa(len(tc.m.Data))+" bytes", tc.frames...)
		}
	})
}

// §5.4: control frames inside a message take effect at once.
func TestSection5_4_ControlFramesInside(t *testing.T) {
	onBoth(t, testSettings(), func(t *testing.T, c *WebSocket, r *recorder, s side) {
		s.send("\x01\x03Hel", "\x89\x02hi")
		s.want("pong inside a message", "\x8a\x02hi")
		s.send("\x00\x00", "\x8a\x00", "\x89\x00")
		s.want("pong inside a message", "\x8a\x00")
		s.send("\x80\x02lo", "\x02\x01a", "\x88\x02\x03\xe8", "\x80\x01b")
		s.want("close inside a message", close1000)
		s.wantEnd()
		waitDone(t, c)
		r.want(t, "open", `text "Hello"`, `close 1000 "" clean=true by peer`)
	})
}

func TestSection5_5_1_NothingBehindClose(t *testing.T) {
	onBoth(t, testSettings(), func(t *testing.T, c *WebSocket, r *recorder, s side) {
		c.CloseWith(1000, "")
		c.CloseWith(4000, "second")
		c.Close()
		for what, err := range map[string]error{
			"Send":  c.Send(Message{Type: Text, Data: nil}),
			"Write": c.Write(t.Context(), Message{Type: Text, Data: nil}),
			"NextWriter": func() error {
				_, err := c.NextWriter(t.Context(), Text)
				return err
			}(),
			"Ping": func() error {
				_, err := c.Ping(t.Context())
				return err
			}(),
		} {
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s: %v", what, err)
			}
		}
		s.want("one Close", close1000)
		s.send("\x89\x01p", "\x81\x01x", "\x88\x02\x03\xe8")
		s.wantEnd()
		waitDone(t, c)
		r.want(t, "open", `close 1000 "" clean=true by local`)
	})
	// Behind the peer's Close nothing is looked at: the Ping is not answered.
	onBoth(t, testSettings(), func(t *testing.T, c *WebSocket, r *recorder, s side) {
		s.send("\x88\x02\x03\xe8", "\x89\x01p", "\x81\x01x", "\x88\x02\x03\xe9", "\x83\x00")
		s.want("one Close", close1000)
		s.wantEnd()
		waitDone(t, c)
		r.want(t, "open", `close 1000 "" clean=true by peer`)
	})
}

func TestSection5_5_1_EveryCodeIsEchoed(t *testing.T) {
	codes := []int{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999}
	for _, code := range codes {
		onBoth(t, testSettings(), func(t *testing.T, c *WebSocket, r *recorder, s side) {
			body := string([]byte{byte(code >> 8), byte(code)})
			s.send("\x88\x05" + body + "why")
			s.want("the code and the reason", "\x88\x05"+body+"why")
			s.wantEnd()
			if ev := waitDone(t, c); int(ev.Code) != code || ev.Reason != "why" || !ev.WasClean || ev.Initiator != InitiatorPeer || ev.Err != nil {
				t.Errorf("%+v", ev)
			}
		})
	}
}

// A message that NextReader has begun and nobody reads on does not hide the
// closing handshake that comes behind it.
func TestSection5_5_1_CloseInsideMessage(t *testing.T) {
	for name, rest := range map[string][]string{
		"in the frame":      {"\x82\x7e\x1f\x40" + strings.Repeat("\x83", 8000)},
		"between fragments": {"\x02\x7e\x03\xe8" + strings.Repeat("\x83", 1000), "\x80\x7e\x03\xe8" + strings.Repeat("\x83", 1000)},
		"whole":             {"\x82\x7e\x03\xe8" + strings.Repeat("\x83", 1000)},
	} {
		for _, cut := range []int{100, 1100} {
			t.Run(name+"/"+strconv.Itoa(cut), func(t *testing.T) {
				onEachUnread(t, testSettings(), func(t *testing.T, c *WebSocket, p peer) {
					wire := diallers(append(rest, "\x88\x02\x03\xe8"))
					cut := min(cut, len(wire)-8)
					p.send(wire[:cut])
					_, r, err := c.NextReader(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadFull(r, make([]byte, 50)); err != nil {
						t.Fatal(err)
					}
					c.CloseWith(1000, "")
					p.want("our Close", close1000)
					if _, err := r.Read(make([]byte, 10)); !errors.Is(err, net.ErrClosed) {
						t.Errorf("Read after Close: %v", err)
					}
					p.send(wire[cut:])
					p.wantEOF()
					p.conn.Close()
					if ev := waitDone(t, c); !ev.WasClean || ev.Code != 1000 || ev.Initiator != InitiatorLocal || ev.Err != nil {
						t.Errorf("%+v", ev)
					}
				})
			})
		}
	}
}

func TestSection5_5_2_PongHasThePingsData(t *testing.T) {
	onBoth(t, testSettings(), func(t *testing.T, c *WebSocket, r *recorder, s side) {
		for n := range 126 {
			data := strings.Repeat("\xff", n) // no text: any bytes will do
			s.send("\x89" + string(rune(n)) + data)
			s.want("pong", "\x8a"+string(rune(n))+data)
		}
	})
}

func TestSection5_5_3_UnaskedPong(t *testing.T) {
	onBoth(t, testSettings(), func(t *testing.T, c *WebSocket, r *recorder, s side) {
		s.send("\x8a\x00", "\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x01", "\x8a\x05Hello", "\x88\x02\x03\xe8")
		s.want("nothing but the Close", close1000)
		s.wantEnd()
		waitDone(t, c)
		r.want(t, "open", `close 1000 "" clean=true by peer`)
	})
}

// The listening side ends its direction as soon as both Close frames are there;
// the dialling side waits for that, but not for ever.
func TestSection7_1_1_WhoEndsTheTransport(t *testing.T) {
	for _, local := range []bool{false, true} {
		for _, dialled := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := memnet.Pipe(0)
				c := newOpenWebSocket(testSettings(), ours, dialled, nil)
				go c.run()
				s := side{peer: peer{t, theirs}, dialled: dialled}
				start := time.Now()
				if local {
					c.CloseWith(1000, "")
					s.want("close", close1000)
					s.send(close1000)
				} else {
					s.send(close1000)
					s.want("close", close1000)
				}
				_, err := s.next()
				d := time.Since(start)
				if !dialled && d != 0 || dialled && d != defaultCloseTimeout || err != io.EOF {
					t.Errorf("local %v, dialled %v: ended after %v, %v", local, dialled, d, err)
				}
				if ev := waitDone2(c); !ev.WasClean || ev.Code != 1000 || ev.Err != nil {
					t.Errorf("local %v, dialled %v: %+v", local, dialled, ev)
				}
				theirs.Close()
			})
		}
	}
}

// Both Close frames cross: each side sends one, both ends are clean.
func TestSection7_1_2_AtTheSameTime(t *testing.T) {
	onBoth(t, testSettings(), func(t *testing.T, c *WebSocket, r *recorder, s side) {
		c.CloseWith(4001, "ours")
		s.send("\x88\x08\x0f\xa2theirs")
		s.want("our Close and no answer to theirs", "\x88\x06\x0f\xa1ours")
		s.wantEnd()
		waitDone(t, c)
		r.want(t, "open", `close 4002 "theirs" clean=true by local`)
	})
	// Two of ours.
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			a, d := Pipe(ListenConfig{}, Dialer{})
			go a.CloseWith(4001, "a")
			go d.CloseWith(4002, "d")
			evA, evD := waitDone2(a), waitDone2(d)
			if !evA.WasClean || !evD.WasClean || evA.Err != nil || evD.Err != nil {
				t.Errorf("%+v, %+v", evA, evD)
			}
			for _, ev := range []CloseEvent{evA, evD} {
				if ev.Initiator == InitiatorLocal && ev.Code != 4001 && ev.Code != 4002 {
					t.Errorf("%+v", ev)
				}
			}
		})
	}
}

func TestSection7_1_5_CodeAndReason(t *testing.T) {
	for _, tc := range []struct {
		name   string
		frames []string
		event  string
	}{
		{"none", nil, `close 1006 "" clean=false by network`},
		{"no code", []string{"\x88\x00"}, `close 1005 "" clean=true by peer`},
		{"code", []string{"\x88\x02\x0f\xa0"}, `close 4000 "" clean=true by peer`},
		{"code and reason", []string{"\x88\x06\x0f\xa0\xe2\x82\xacx"}, `close 4000 "€x" clean=true by peer`},
		{"longest reason", []string{"\x88\x7d\x03\xe8" + strings.Repeat("r", 123)}, `close 1000 "` + strings.Repeat("r", 123) + `" clean=true by peer`},
		{"the first counts", []string{"\x88\x00", "\x88\x02\x0f\xa0"}, `close 1005 "" clean=true by peer`},
		{"the first counts", []string{"\x88\x03\x0f\xa1a", "\x88\x03\x0f\xa2b"}, `close 4001 "a" clean=true by peer`},
		{"cut off", []string{"\x88\x7d\x03\xe8"}, `close 1006 "" clean=false by network`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			onBoth(t, testSettings(), func(t *testing.T, c *WebSocket, r *recorder, s side) {
				if len(tc.frames) > 0 {
					s.send(tc.frames...)
				}
				s.conn.(interface{ CloseWrite() error }).CloseWrite()
				io.Copy(io.Discard, s.conn)
				waitDone(t, c)
				r.mu.Lock()
				defer r.mu.Unlock()
				if got := r.list[len(r.list)-1]; got != tc.event {
					t.Errorf("%s, want %s", got, tc.event)
				}
			})
		})
	}
}

// §7.1.7 over connections: the Close frame with its code and constant reason,
// then the end; what is behind the violation, a Close too, does not count.
func TestSection7_1_7_BothRoles(t *testing.T) {
	for _, tc := range []struct {
		section, name string
		frames        []string
		close         string // its payload
	}{
		{"5.2", "reserved bit", []string{"\xc1\x00"}, "\x03\xeareserved bit set without an extension"},
		{"5.2", "reserved data opcode", []string{"\x83\x00"}, "\x03\xeareserved opcode"},
		{"5.2", "reserved control opcode", []string{"\x8b\x00"}, "\x03\xeareserved opcode"},
		{"5.2", "length 125 in 16 bits", []string{"\x82\x7e\x00\x7d" + strings.Repeat("x", 125)}, "\x03\xealength not minimally encoded"},
		{"5.2", "length 65535 in 64 bits", []string{"\x82\x7f\x00\x00\x00\x00\x00\x00\xff\xff"}, "\x03\xealength not minimally encoded"},
		{"5.2", "length with its top bit", []string{"\x82\x7f\x80\x00\x00\x00\x00\x00\x00\x00"}, "\x03\xealength has its top bit set"},
		{"5.4", "continuation of nothing", []string{"\x80\x01x"}, "\x03\xeacontinuation frame without a message"},
		{"5.4", "message in a message", []string{"\x01\x01a", "\x81\x01b"}, "\x03\xeanew message inside a fragmented one"},
		{"5.5", "fragmented ping", []string{"\x09\x00"}, "\x03\xeafragmented control frame"},
		{"5.5", "fragmented close", []string{"\x08\x00"}, "\x03\xeafragmented control frame"},
		{"5.5", "ping of 126 bytes", []string{"\x89\x7e\x00\x7e" + strings.Repeat("p", 126)}, "\x03\xeacontrol frame over 125 bytes"},
		{"5.5.1", "close of one byte", []string{"\x88\x01\x03"}, "\x03\xeaclose frame of one byte"},
		{"5.5.1", "reason not UTF-8", []string{"\x88\x03\x03\xe8\xff"}, "\x03\xefclose reason is not UTF-8"},
		{"7.4", "code 1005", []string{"\x88\x02\x03\xed"}, "\x03\xeaclose code that must not be sent"},
		{"7.4", "code 5000", []string{"\x88\x02\x13\x88"}, "\x03\xeaclose code that must not be sent"},
		{"8.1", "text not UTF-8", []string{"\x81\x03\xed\xa0\x80"}, "\x03\xeftext is not UTF-8"},
		{"8.1", "text cut off", []string{"\x01\x01\xe2", "\x80\x01\x82"}, "\x03\xeftext is not UTF-8"},
		{"10.4", "message too big", []string{"\x82\x7f\x00\x00\x00\x00\x00\x10\x00\x01"}, "\x03\xf1over the limit"},
		{"10.4", "fragments too big together", []string{"\x02\x01x", "\x80\x7f\x00\x00\x00\x00\x00\x10\x00\x00"}, "\x03\xf1over the limit"},
	} {
		t.Run(tc.section+" "+tc.name, func(t *testing.T) {
			onBoth(t, testSettings(), func(t *testing.T, c *WebSocket, r *recorder, s side) {
				s.send("\x81\x05Hello")
				s.send(append(tc.frames, "\x81\x05Hello", "\x89\x01p", "\x88\x02\x03\xe8")...)
				s.want("Close", "\x88"+string(rune(len(tc.close)))+tc.close)
				s.wantEnd()
				ev := waitDone(t, c)
				if ev.Code != 1006 || ev.WasClean || ev.Initiator != InitiatorLimit {
					t.Errorf("%+v", ev)
				}
				r.want(t, "open", `text "Hello"`, "error "+ev.Err.Error(), `close 1006 "" clean=false by limit`)
			})
		})
	}
	t.Run("5.1 wrong masking", func(t *testing.T) {
		onBoth(t, testSettings(), func(t *testing.T, c *WebSocket, r *recorder, s side) {
			want := "\x88\x2c\x03\xeaframe from the dialling side is not masked"
			wrong := hello
			if s.dialled {
				wrong, want = maskedHello, "\x88\x29\x03\xeaframe from the listening side is masked"
			}
			s.peer.send(wrong)
			s.want("Close", want)
			s.wantEnd()
			waitDone(t, c)
		})
	})
}

// The Close frame comes at the first byte that cannot be right, before anything
// behind it was sent, and not before that byte: over connections, byte by byte.
func TestSection8_1_FirstWrongByte(t *testing.T) {
	for _, tc := range []struct {
		name   string
		frames []string // the last byte of the last one is wrong; it announces more
	}{
		{"first byte", []string{"\x81\x0a\xff"}},
		{"continuation byte alone", []string{"\x81\x0aab\x80"}},
		{"overlong", []string{"\x81\x0aab\xc0"}},
		{"overlong of three", []string{"\x81\x0aab\xe0\x9f"}},
		{"surrogate", []string{"\x81\x0aab\xed\xa0"}},
		{"beyond U+10FFFF", []string{"\x81\x0aab\xf4\x90"}},
		{"beyond all", []string{"\x81\x0aab\xf5"}},
		{"third byte", []string{"\x81\x0aab\xe2\x82\x28"}},
		{"fourth byte", []string{"\x81\x0aab\xf0\x9f\x98\x28"}},
		{"in the second fragment", []string{"\x01\x02ab", "\x00\x05cd\xfe"}},
		{"over two fragments", []string{"\x01\x03ab\xed", "\x80\x0a\xbf"}},
		{"over four fragments, pings between", []string{"\x01\x01\xf0", "\x89\x00", "\x00\x01\x9f", "\x00\x00", "\x8a\x00", "\x00\x01\x98", "\x89\x00", "\x00\x05\xc0"}},
		{"far inside a large frame", []string{"\x81\x7f\x00\x00\x00\x00\x00\x02\x00\x00" + strings.Repeat("é", 12_000) + "\xa9"}},
	} {
		pings := strings.Count(strings.Join(tc.frames, ""), "\x89\x00")
		t.Run(tc.name, func(t *testing.T) {
			onBoth(t, testSettings(), func(t *testing.T, c *WebSocket, r *recorder, s side) {
				wire := s.encode(tc.frames...)
				for i := range len(wire) {
					if len(wire) < 100 || i > len(wire)-20 {
						s.peer.send(wire[i : i+1])
					} else if i == 0 {
						s.peer.send(wire[:len(wire)-19])
					}
				}
				for range pings {
					s.want("pong", "\x8a\x00")
				}
				s.want("Close", "\x88\x13\x03\xeftext is not UTF-8") // nothing more was sent
			})
			for _, dialled := range []bool{false, true} {
				synctest.Test(t, func(t *testing.T) {
					ours, theirs := memnet.Pipe(0)
					c := newOpenWebSocket(testSettings(), ours, dialled, nil)
					c.OnMessage(func(*WebSocket, Message) { t.Error("a message") })
					go c.run()
					s := side{peer: peer{t, theirs}, dialled: dialled}
					wire := s.encode(tc.frames...)
					s.peer.send(wire[:len(wire)-1])
					synctest.Wait()
					if c.ReadyState() != Open {
						t.Error("failed before the wrong byte")
					}
					s.peer.send(wire[len(wire)-1:])
					synctest.Wait()
					if c.ReadyState() == Open {
						t.Error("not failed at the wrong byte")
					}
					theirs.Close()
					<-c.Done()
				})
			}
		})
	}
}
