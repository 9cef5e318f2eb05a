//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/peerws/peerws"
)

// What a full house costs: as many honest connections as the listener's cap, one more,
// and the way from SIGTERM to the process's end with a closing handshake for each.

var crowds = []int{5000, 10_000}

const (
	crowdDialers = 64
	fuzzTime     = 20 * time.Second
)

// serveCrowd is the listener's process.
func serveCrowd(most int) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	c := peerws.ListenConfig{
		Address: "127.0.0.1", MaxConnections: most,
		OnConnection: func(c *peerws.WebSocket) {
			c.OnMessage(func(c *peerws.WebSocket, m peerws.Message) { c.Send(m) })
		},
	}
	l, err := c.Listen(ctx, 0)
	if err != nil {
		return err
	}
	fmt.Println(l.Port())
	<-ctx.Done()
	limit, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return l.Shutdown(limit)
}

func runCrowds(out io.Writer) error {
	fmt.Fprint(out, "\n| honest connections | to open them | resident | one more | SIGTERM to the end |\n| ---: | ---: | ---: | --- | ---: |\n")
	for _, n := range crowds {
		if err := runCrowd(out, n); err != nil {
			return fmt.Errorf("%d connections: %w", n, err)
		}
	}
	return nil
}

func runCrowd(out io.Writer, n int) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	server := exec.Command(exe, "-crowd", strconv.Itoa(n))
	server.Stderr = os.Stderr
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := server.StdoutPipe()
	if err != nil {
		return err
	}
	if err := server.Start(); err != nil {
		return err
	}
	defer server.Process.Kill() // for the ways out on which it still runs
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		return err
	}
	port, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		return err
	}
	conns := make([]net.Conn, n)
	errs := make([]error, crowdDialers)
	var wg sync.WaitGroup
	began := time.Now()
	for d := range crowdDialers {
		wg.Go(func() {
			for i := d; i < n && errs[d] == nil; i += crowdDialers {
				conns[i], _, errs[d] = enter(port, time.Minute)
			}
		})
	}
	wg.Wait()
	opened := time.Since(began)
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	rss, err := resident(server.Process.Pid)
	if err != nil {
		return err
	}
	refusal, err := oneMore(port)
	if err != nil {
		return err
	}
	bad := make([]error, n)
	for i, c := range conns {
		wg.Go(func() { bad[i] = goodbye(c) })
	}
	sent := time.Now()
	if err := server.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := server.Wait(); err != nil {
		return err
	}
	took := time.Since(sent)
	wg.Wait()
	for _, err := range bad {
		if err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "| %d | %.2f s | %.1f MB | %s | %.2f s |\n", n, opened.Seconds(), float64(rss)/1e6, refusal, took.Seconds())
	return nil
}

// oneMore returns what the listener says to who comes to a full house.
func oneMore(port int) (string, error) {
	c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Minute)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	io.WriteString(c, opening)
	answer, err := io.ReadAll(c)
	if err != nil {
		return "", err
	}
	head, body, _ := bytes.Cut(answer, []byte("\r\n\r\n"))
	status, _, _ := strings.Cut(string(head), "\r\n")
	return fmt.Sprintf("%s (%s)", strings.TrimPrefix(status, "HTTP/1.1 "), bytes.TrimSpace(body)), nil
}

// goodbye waits for a Close frame and answers it with the same code.
func goodbye(c net.Conn) error {
	defer c.Close()
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if b[0] != 0x88 || b[1] != 2 {
		return fmt.Errorf("%x came, not a Close frame", b)
	}
	if code := binary.BigEndian.Uint16(b[2:]); code != uint16(peerws.StatusGoingAway) {
		return fmt.Errorf("closed with %d", code)
	}
	if _, err := c.Write(frame(8, b[2:], attackKey)); err != nil {
		return err
	}
	if n, err := io.Copy(io.Discard, c); n > 0 || err != nil {
		return fmt.Errorf("%d bytes behind the Close frame: %w", n, err)
	}
	return nil
}

// runHostile runs the tests of hostile inputs and the fuzzing of a whole connection, and
// prints their sums.
func runHostile(out io.Writer) error {
	test := func(args ...string) (string, error) {
		cmd := exec.Command("go", append([]string{"test", "-v", "-timeout", "5m"}, args...)...)
		cmd.Dir = ".."
		b, err := cmd.CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%w\n%s", err, b)
		}
		return string(b), nil
	}
	text, err := test("-count=1", "-run", "Hostile|TestRequireToken", ".")
	if err != nil {
		return err
	}
	numbers := map[string]bool{}
	inputs := regexp.MustCompile(`hostile input (\d+)`).FindAllStringSubmatch(text, -1)
	for _, m := range inputs {
		numbers[m[1]] = true
	}
	fmt.Fprintf(out, "\nHostile inputs: %d tried, of %d kinds, each got what it must get.\n", len(inputs), len(numbers))
	if text, err = test("-run", "^$", "-fuzz", "^FuzzConnection$", "-fuzztime", fuzzTime.String(), "."); err != nil {
		return err
	}
	execs := regexp.MustCompile(`execs: (\d+)`).FindAllStringSubmatch(text, -1)
	if len(execs) == 0 {
		return fmt.Errorf("the fuzzer does not say what it did:\n%s", text)
	}
	fmt.Fprintf(out, "Fuzzing of a whole connection for %v: %s executions, no finding.\n", fuzzTime, execs[len(execs)-1][1])
	return nil
}
