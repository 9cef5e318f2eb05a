// Package browsertest has a real browser open the chat page.
//
// The tests run only with PEERWS_BROWSER=1; then chromium, node and what
// package-lock.json names (npm ci) must be there, or they fail.
package browsertest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// need skips the test or makes sure that what it needs is there. It returns
// the browser's path.
func need(t *testing.T) string {
	t.Helper()
	if os.Getenv("PEERWS_BROWSER") == "" {
		t.Skip("needs chromium, node and playwright-core; PEERWS_BROWSER=1 runs it")
	}
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			if _, err := exec.LookPath("node"); err != nil {
				t.Fatal("node is not installed")
			}
			if _, err := os.Stat("node_modules/playwright-core/package.json"); err != nil {
				t.Fatal("playwright-core is not installed: run npm ci in internal/browsertest")
			}
			return path
		}
	}
	t.Fatal("chromium is not installed")
	return ""
}

// A browser runs driver.mjs.
type browser struct {
	t   *testing.T
	mu  sync.Mutex
	in  io.WriteCloser
	out *bufio.Scanner
}

type command struct {
	Page     string `json:"page"`
	Op       string `json:"op"`
	URL      string `json:"url,omitempty"`
	Name     string `json:"name,omitempty"`
	Text     string `json:"text,omitempty"`
	Selector string `json:"selector,omitempty"`
	Path     string `json:"path,omitempty"`
	Width    int    `json:"width,omitempty"`
	Height   int    `json:"height,omitempty"`
	Dark     bool   `json:"dark,omitempty"`
}

func startBrowser(t *testing.T, path string) *browser {
	t.Helper()
	cmd := exec.Command("node", "driver.mjs")
	cmd.Env = append(os.Environ(), "CHROMIUM="+path)
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := &browser{t: t, in: in, out: bufio.NewScanner(out)}
	b.out.Buffer(nil, 16<<20)
	t.Cleanup(func() {
		in.Close()
		kill := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		defer kill.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("driver: %v", err)
		}
	})
	return b
}

// do sends a command and puts the answer's value into result, if that is not nil.
func (b *browser) do(c command, result any) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	data, err := json.Marshal(c)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.in.Write(append(data, '\n')); err != nil {
		b.t.Fatalf("%s: driver: %v", c.Op, err)
	}
	if !b.out.Scan() {
		b.t.Fatalf("%s: driver ended: %v", c.Op, b.out.Err())
	}
	var answer struct {
		Value json.RawMessage
		Error string
	}
	if err := json.Unmarshal(b.out.Bytes(), &answer); err != nil {
		b.t.Fatalf("%s: driver said %s", c.Op, b.out.Bytes())
	}
	if answer.Error != "" {
		b.t.Fatalf("%s on %s: %s", c.Op, c.Page, answer.Error)
	}
	if result != nil {
		if err := json.Unmarshal(answer.Value, result); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *browser) lines(page string) (lines []string) {
	b.t.Helper()
	b.do(command{Page: page, Op: "lines"}, &lines)
	return lines
}

func (b *browser) say(page, text string) {
	b.t.Helper()
	b.do(command{Page: page, Op: "say", Text: text}, nil)
}

// untroubled checks that no page had an error, was refused something by its
// content policy, or asked for anything but itself.
func (b *browser) untroubled() {
	b.t.Helper()
	var troubles []string
	b.do(command{Op: "troubles"}, &troubles)
	for _, s := range troubles {
		b.t.Error(s)
	}
}

var buildChat = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "peerws-browsertest-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "chat")
	if out, err := exec.Command("go", "build", "-o", path, "../../examples/chat").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if os.Getenv("PEERWS_BROWSER") != "" {
		if path, err := buildChat(); err == nil {
			os.RemoveAll(filepath.Dir(path))
		}
	}
	os.Exit(code)
}

// A chat is a running examples/chat: a peer or a guest, at a terminal that is a
// pair of pipes.
type chat struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser

	mu  sync.Mutex
	got []string
}

func startChat(t *testing.T, args ...string) *chat {
	t.Helper()
	path, err := buildChat()
	if err != nil {
		t.Fatal(err)
	}
	c := &chat{t: t, cmd: exec.Command(path, args...)}
	c.cmd.Stderr = t.Output()
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan bool)
	go func() {
		defer close(read)
		for s := bufio.NewScanner(out); s.Scan(); {
			c.mu.Lock()
			c.got = append(c.got, s.Text())
			c.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		if c.cmd.Process.Signal(syscall.SIGTERM) == nil {
			kill := time.AfterFunc(5*time.Second, func() { c.cmd.Process.Kill() })
			defer kill.Stop()
		}
		<-read
		if err := c.cmd.Wait(); err != nil {
			t.Errorf("chat %s: %v, want exit status 0 within 5 s of SIGTERM", strings.Join(args, " "), err)
		}
	})
	return c
}

func (c *chat) lines() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.got)
}

func (c *chat) say(text string) {
	if _, err := io.WriteString(c.in, text+"\n"); err != nil {
		c.t.Error(err)
	}
}

// wait returns the first line that matches the pattern, as soon as there is one.
func wait(t *testing.T, who string, lines func() []string, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		for _, s := range lines() {
			if m := re.FindStringSubmatch(s); m != nil {
				return m
			}
		}
	}
	all := lines()
	t.Fatalf("%s never saw %s; the last of %d lines:\n%s", who, pattern, len(all), strings.Join(all[max(0, len(all)-20):], "\n"))
	return nil
}

// between returns the spoken lines after the one that ends in first, up to the
// one that ends in last.
func between(lines []string, first, last string) []string {
	end := func(suffix string) int {
		return slices.IndexFunc(lines, func(s string) bool { return strings.HasSuffix(s, ": "+suffix) })
	}
	from, to := end(first), end(last)
	if from < 0 || to < from {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(lines[from+1:to]), func(s string) bool { return strings.HasPrefix(s, "* ") })
}

// checkTalk checks that everybody saw the same lines in the same order, and
// of each speaker the lines 0 to n-1, each once and in order.
func checkTalk(t *testing.T, views map[string][]string, n int, speakers ...string) {
	t.Helper()
	var reference []string
	for who, lines := range views {
		if reference == nil {
			reference = lines
		}
		if !slices.Equal(lines, reference) {
			t.Errorf("%s saw other lines, or another order, than somebody else", who)
		}
		count := map[string]int{}
		for i, s := range lines {
			name, text, _ := strings.Cut(s, ": ")
			if text != fmt.Sprintf("line %d of %s", count[name], name) {
				t.Fatalf("%s: line %d is %q, after %d lines of that speaker", who, i, s, count[name])
			}
			count[name]++
		}
		for _, s := range speakers {
			if count[s] != n {
				t.Errorf("%s saw %d lines of %s, want %d", who, count[s], s, n)
			}
		}
	}
}

// Two terminals and two browser windows, all talking at once.
func TestChat(t *testing.T) {
	chromium := need(t)
	ann := startChat(t, "-port", "0", "-nat=false", "-name", "ann")
	link := wait(t, "ann", ann.lines, `^\* from this machine: (http://127\.0\.0\.1:\d+/) in a browser, or chat (ws://\S+)$`)
	bob := startChat(t, "-name", "bob", link[2])
	wait(t, "bob", bob.lines, `^\* you are bob, here with you: ann$`)

	b := startBrowser(t, chromium)
	b.do(command{Page: "cat", Op: "open", URL: link[1]}, nil)
	b.do(command{Page: "dan", Op: "open", URL: link[1], Width: 390, Height: 740, Dark: true}, nil)
	shot := func(page, name string) {
		b.do(command{Page: page, Op: "screenshot", Path: filepath.Join(t.ArtifactDir(), name+".png")}, nil)
	}
	shot("cat", "door")
	shot("dan", "door-phone-dark")
	b.do(command{Page: "cat", Op: "join", Name: "cat"}, nil)
	b.do(command{Page: "dan", Op: "join", Name: "cat"}, nil) // somebody is called that already
	cat := func() []string { return b.lines("cat") }
	dan := func() []string { return b.lines("dan") }
	wait(t, "dan", dan, `^\* You are cat-2$`)
	for who, lines := range map[string]func() []string{"ann": ann.lines, "bob": bob.lines, "cat": cat} {
		wait(t, who, lines, `^\* cat-2 joined$`)
	}
	var here string
	b.do(command{Page: "cat", Op: "text", Selector: "#count"}, &here)
	if here != "4 here" {
		t.Errorf("the page says %q", here)
	}

	const n = 200
	ann.say("start")
	wait(t, "cat", cat, ": start$")
	wait(t, "dan", dan, ": start$")
	var wg sync.WaitGroup
	for name, c := range map[string]*chat{"ann": ann, "bob": bob} {
		wg.Go(func() {
			for i := range n {
				c.say(fmt.Sprintf("line %d of %s", i, name))
				if i%10 == 0 {
					time.Sleep(5 * time.Millisecond) // so that all four are mixed
				}
			}
		})
	}
	for i := range n {
		b.say("cat", fmt.Sprintf("line %d of cat", i))
		b.say("dan", fmt.Sprintf("line %d of cat-2", i))
	}
	wg.Wait()
	ann.say("stop")
	views := map[string][]string{}
	for who, lines := range map[string]func() []string{"ann": ann.lines, "bob": bob.lines, "cat": cat, "dan": dan} {
		for _, s := range []string{"ann", "bob", "cat", "cat-2"} {
			wait(t, who, lines, fmt.Sprintf("^%s: line %d of %s$", s, n-1, s))
		}
		wait(t, who, lines, ": stop$")
		all := lines()
		// The pages' last lines may come after "stop".
		tail := all[slices.IndexFunc(all, func(s string) bool { return strings.HasSuffix(s, ": stop") })+1:]
		views[who] = append(between(all, "start", "stop"), tail...)
	}
	checkTalk(t, views, n, "ann", "bob", "cat", "cat-2")

	// What looks like markup is text, what would command a terminal is gone.
	markup := `<img src=x onerror="alert(1)"><script>alert(2)</script>`
	bob.say(markup)
	wait(t, "cat", cat, "^bob: "+regexp.QuoteMeta(markup)+"$")
	b.say("cat", "\x1b[31mred\u202e \x07bell")
	wait(t, "ann", ann.lines, `^cat: \[31mred bell$`)

	// A talk as people have it, for the screenshots.
	ann.say("Is everybody here? The room runs on my laptop.")
	bob.say("Yes, from the terminal in the kitchen.")
	wait(t, "cat", cat, "kitchen")
	b.say("cat", "I opened the link in a browser, nothing to install.")
	b.say("cat", "And a longer line, to see how it looks when it does not fit into one row of the window: it should simply go on in the next.")
	wait(t, "dan", dan, "longer line")
	b.say("dan", "On the phone too 📱")
	bob.say(strings.Repeat("averyveryverylongword", 8))
	wait(t, "cat", cat, "averyvery")
	wait(t, "dan", dan, "averyvery")
	shot("cat", "room")
	shot("dan", "room-phone-dark")
	newer := func(page string, want bool) {
		t.Helper()
		wait(t, page, func() []string {
			var visible bool
			b.do(command{Page: page, Op: "visible", Selector: "#newer"}, &visible)
			return []string{fmt.Sprint(visible)}
		}, fmt.Sprint(want))
	}
	for _, page := range []string{"cat", "dan"} {
		newer(page, false) // the newest line is in sight
		var over int
		if b.do(command{Page: page, Op: "overflow"}, &over); over > 0 {
			t.Errorf("the page of %s is %d pixels too wide", page, over)
		}
	}

	// Who reads further up is not pulled away, but told.
	b.do(command{Page: "dan", Op: "wheel"}, nil)
	bob.say("further down")
	newer("dan", true)
	b.do(command{Page: "dan", Op: "click", Selector: "#newer"}, nil)
	newer("dan", false)
	b.do(command{Page: "cat", Op: "click", Selector: "#here summary"}, nil)
	shot("cat", "members")

	// Leaves are shown: of a terminal whose input ends, of a window that closes.
	bob.in.Close()
	for who, lines := range map[string]func() []string{"ann": ann.lines, "cat": cat, "dan": dan} {
		wait(t, who, lines, `^\* bob left$`)
	}
	b.do(command{Page: "dan", Op: "close"}, nil)
	wait(t, "ann", ann.lines, `^\* cat-2 left$`)
	wait(t, "cat", cat, `^\* cat-2 left$`)
	b.untroubled()
}

// A page whose connection breaks again and again loses no line of its own, none
// of the others', and nobody sees one twice.
func TestReconnect(t *testing.T) {
	chromium := need(t)
	ann := startChat(t, "-port", "0", "-nat=false", "-name", "ann")
	link := wait(t, "ann", ann.lines, `^\* from this machine: http://(127\.0\.0\.1:\d+)/ `)
	p := startProxy(t, link[1])

	b := startBrowser(t, chromium)
	b.do(command{Page: "cat", Op: "open", URL: "http://" + p.addr() + "/"}, nil)
	b.do(command{Page: "cat", Op: "join", Name: "cat"}, nil)
	cat := func() []string { return b.lines("cat") }
	ann.say("start")
	wait(t, "cat", cat, ": start$")

	const n, breaks = 100, 5
	for i := range n {
		ann.say(fmt.Sprintf("line %d of ann", i))
		b.say("cat", fmt.Sprintf("line %d of cat", i))
		if i%(n/breaks) == n/breaks/2 {
			b.do(command{Page: "cat", Op: "wait", Selector: "#state.on"}, nil)
			p.cut()
		}
	}
	for who, lines := range map[string]func() []string{"ann": ann.lines, "cat": cat} {
		wait(t, who, lines, fmt.Sprintf("^cat: line %d of cat$", n-1))
		wait(t, who, lines, fmt.Sprintf("^ann: line %d of ann$", n-1))
	}
	ann.say("stop")
	wait(t, "ann", ann.lines, ": stop$")
	wait(t, "cat", cat, ": stop$")
	checkTalk(t, map[string][]string{
		"ann": between(ann.lines(), "start", "stop"), "cat": between(cat(), "start", "stop"),
	}, n, "ann", "cat")
	if p.cuts < breaks {
		t.Errorf("the connection was broken %d times, want %d", p.cuts, breaks)
	}

	// The peer ends: the page says so and goes on trying.
	if err := ann.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	wait(t, "cat", cat, `^\* The room has closed\.$`)
	b.say("cat", "is anybody there?")
	wait(t, "cat", cat, `^pending cat: is anybody there\?$`)
	b.do(command{Page: "cat", Op: "screenshot", Path: filepath.Join(t.ArtifactDir(), "closed.png")}, nil)
	var visible bool
	if b.do(command{Page: "cat", Op: "visible", Selector: "#again"}, &visible); !visible {
		t.Error("there is no way to try again")
	}
}

// A proxy forwards connections to a peer until it is told to break them.
type proxy struct {
	ln net.Listener
	to string

	mu    sync.Mutex
	conns []net.Conn
	cuts  int
}

func startProxy(t *testing.T, to string) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{ln: ln, to: to}
	t.Cleanup(func() { ln.Close(); p.cut() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", to)
			if err != nil {
				c.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, c, up)
			p.mu.Unlock()
			go func() { io.Copy(up, c); up.Close() }()
			go func() { io.Copy(c, up); c.Close() }()
		}
	}()
	return p
}

func (p *proxy) addr() string { return p.ln.Addr().String() }

// cut resets every connection, on both sides, with whatever is on its way.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.conns) > 0 {
		p.cuts++
	}
	for _, c := range p.conns {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	p.conns = nil
}
