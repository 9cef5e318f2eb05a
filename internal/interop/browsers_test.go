package interop

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/peerws/peerws"
)

// A browser is one that has our page open. It takes commands over a WebSocket of
// its own, in Chromium's protocol or in WebDriver BiDi, and our dialler is what
// speaks to it.
type browser struct {
	id  string
	cmd *exec.Cmd
	ctl *peerws.WebSocket
	dir string // its home and profile, fresh

	mu       sync.Mutex
	last     int
	session  string                                               // of Chromium's page
	evaluate func(ctx context.Context, js string) (string, error) // of a promise of a string
}

// page starts the page's server. The page is the peer of peer.mjs.
func page(t *testing.T) (origin string) {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		io.WriteString(w, "<!DOCTYPE html><title>peer</title><link rel=icon href=data:,>\n"+
			"<script type=module>import {follow} from './peer.mjs'; window.follow = follow</script>\n")
	})
	mux.HandleFunc("GET /peer.mjs", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/javascript; charset=utf-8")
		http.ServeFile(w, r, "peer.mjs")
	})
	l, err := peerws.ListenConfig{
		Address:      "127.0.0.1",
		HTTP:         mux,
		OnConnection: func(c *peerws.WebSocket) { echo(context.Background(), &session{c, nil}) },
	}.Listen(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return fmt.Sprintf("http://127.0.0.1:%d", l.Port())
}

// launch starts a browser and connects to the address that it prints.
func launch(t *testing.T, name, path string, args ...string) *browser {
	t.Helper()
	// Not t.TempDir: a browser's last process may write while it is removed.
	dir, err := os.MkdirTemp("", "peerws-"+name+"-")
	if err != nil {
		t.Fatal(err)
	}
	b := &browser{id: name, dir: dir, cmd: exec.CommandContext(lifetime(t), path)}
	for _, a := range args {
		b.cmd.Args = append(b.cmd.Args, strings.ReplaceAll(a, "DIR", dir))
	}
	b.cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME=", "XDG_CACHE_HOME=", "MOZ_CRASHREPORTER_DISABLE=1")
	b.cmd.WaitDelay = 5 * time.Second
	if name == "firefox" {
		if err := os.WriteFile(filepath.Join(dir, "user.js"), []byte(firefoxPrefs), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	errs, err := b.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(most, func() { b.cmd.Process.Kill() })
	t.Cleanup(func() {
		b.cmd.Process.Kill() // does nothing if it has ended
		b.cmd.Wait()
		for range 20 {
			if os.RemoveAll(dir) == nil {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	var said []string
	address := regexp.MustCompile(`listening on (ws://\S+)$`)
	for s := bufio.NewScanner(errs); ; {
		if !s.Scan() {
			t.Fatalf("%s did not start:\n%s", name, strings.Join(said, "\n"))
		}
		said = append(said, s.Text())
		if m := address.FindStringSubmatch(s.Text()); m != nil {
			if name == "firefox" {
				m[1] += "/session"
			}
			if b.ctl, err = peerws.Dial(t.Context(), m[1]); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	kill.Stop()
	go io.Copy(io.Discard, errs)
	t.Cleanup(func() { b.ctl.Abort() })
	return b
}

// call sends a command and waits for its answer. Both protocols have the same
// frame.
func (b *browser) call(ctx context.Context, method string, params, result any) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last++
	command := map[string]any{"id": b.last, "method": method, "params": params}
	if b.session != "" {
		command["sessionId"] = b.session
	}
	data, err := json.Marshal(command)
	if err != nil {
		return err
	}
	if err := b.ctl.Write(ctx, peerws.Message{Type: peerws.Text, Data: data}); err != nil {
		return err
	}
	for {
		m, err := b.ctl.Read(ctx)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", b.id, method, err)
		}
		var answer struct {
			ID     int
			Error  any
			Result json.RawMessage
		}
		if err := json.Unmarshal(m.Data, &answer); err != nil {
			return err
		}
		switch {
		case answer.Error != nil:
			return fmt.Errorf("%s: %s: %s", b.id, method, m.Data)
		case answer.ID != b.last: // an event
		case result == nil:
			return nil
		default:
			return json.Unmarshal(answer.Result, result)
		}
	}
}

func (b *browser) can() int {
	skill := canCloseBare | canKeepBOM | canTellEnd
	if b.id == "chromium" {
		skill |= canBeStrict
	}
	return skill
}

func (b *browser) dial(url string, offer []string, steps []step) (r report, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), most)
	defer cancel()
	c := newCommand("", offer, steps)
	data, err := json.Marshal([]any{url, c.Protocols, c.Steps})
	if err != nil {
		return r, err
	}
	value, err := b.evaluate(ctx, fmt.Sprintf(
		"(async ([url, protocols, steps]) => JSON.stringify(await follow(new WebSocket(url, protocols), steps)))(%s)", data))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal([]byte(value), &r)
}

func startChromium(t *testing.T, id *identity, url string) *browser {
	need(t, "chromium")
	key := sha256.Sum256(id.certificate.Leaf.RawSubjectPublicKeyInfo)
	b := launch(t, "chromium", "chromium",
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--user-data-dir=DIR", "--remote-debugging-port=0",
		// Nothing but this machine, and the one certificate beside the system's.
		"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
		"--ignore-certificate-errors-spki-list="+base64.StdEncoding.EncodeToString(key[:]),
		"about:blank")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	var target struct{ TargetID, SessionID string }
	must(b.call(ctx, "Target.createTarget", map[string]any{"url": url}, &target))
	must(b.call(ctx, "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &target))
	b.session = target.SessionID
	b.evaluate = func(ctx context.Context, js string) (string, error) {
		var r struct {
			Result           struct{ Value string }
			ExceptionDetails json.RawMessage
		}
		err := b.call(ctx, "Runtime.evaluate", map[string]any{"expression": js, "awaitPromise": true, "returnByValue": true}, &r)
		if err == nil && r.ExceptionDetails != nil {
			err = fmt.Errorf("chromium: %s", r.ExceptionDetails)
		}
		return r.Result.Value, err
	}
	for {
		ready, err := b.evaluate(ctx, "String(Boolean(window.follow))")
		must(err)
		if ready == "true" {
			return b
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// firefoxPrefs: everything that is not this machine goes to a proxy that is not
// there, and little is asked for.
const firefoxPrefs = `
user_pref("network.proxy.type", 1);
user_pref("network.proxy.http", "127.0.0.1");
user_pref("network.proxy.http_port", 9);
user_pref("network.proxy.ssl", "127.0.0.1");
user_pref("network.proxy.ssl_port", 9);
user_pref("network.proxy.allow_bypass", false);
user_pref("network.proxy.failover_direct", false);
user_pref("network.dns.disabled", true);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("network.trr.mode", 5);
user_pref("app.normandy.enabled", false);
user_pref("app.update.disabledForTesting", true);
user_pref("browser.safebrowsing.downloads.remote.enabled", false);
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("browser.startup.page", 0);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("extensions.update.enabled", false);
user_pref("toolkit.telemetry.reportingpolicy.firstRun", false);
`

func startFirefox(t *testing.T, _ *identity, url string) *browser {
	need(t, "firefox-esr")
	b := launch(t, "firefox", "firefox-esr",
		"--headless", "--no-remote", "--new-instance", "--profile", "DIR", "--remote-debugging-port", "0", "about:blank")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	must(b.call(ctx, "session.new", map[string]any{
		"capabilities": map[string]any{"alwaysMatch": map[string]any{"acceptInsecureCerts": true}},
	}, nil))
	var tree struct{ Contexts []struct{ Context string } }
	must(b.call(ctx, "browsingContext.getTree", map[string]any{}, &tree))
	tab := tree.Contexts[0].Context
	must(b.call(ctx, "browsingContext.navigate", map[string]any{"context": tab, "url": url, "wait": "complete"}, nil))
	b.evaluate = func(ctx context.Context, js string) (string, error) {
		var r struct {
			Type             string
			Result           struct{ Value string }
			ExceptionDetails json.RawMessage
		}
		err := b.call(ctx, "script.evaluate", map[string]any{
			"expression": js, "awaitPromise": true, "target": map[string]any{"context": tab},
		}, &r)
		if err == nil && r.Type != "success" {
			err = fmt.Errorf("firefox: %s", r.ExceptionDetails)
		}
		return r.Result.Value, err
	}
	return b
}

// Pages in real browsers connect to our listener.
func TestBrowsersToListener(t *testing.T) {
	need(t)
	id := newIdentity(t)
	for name, begin := range map[string]func(*testing.T, *identity, string) *browser{
		"chromium": startChromium,
		"firefox":  startFirefox,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			origin := page(t)
			b := begin(t, id, origin+"/")
			config := id.listener()
			config.AllowedOrigins = []string{origin} // each exchange has a port of its own
			for _, scheme := range []string{"ws", "wss"} {
				t.Run(scheme, func(t *testing.T) { connects(t, b, scheme, config) })
			}
			for way, c := range compressions {
				config.Compression = c
				t.Run(way, func(t *testing.T) { connects(t, b, "ws", config) })
			}
			t.Run("origin", func(t *testing.T) { origins(t, b, origin) })
		})
	}
}

// origins has a page connect to where it comes from, which is allowed, and
// somewhere else, which is not.
func origins(t *testing.T, b *browser, origin string) {
	own := strings.Replace(origin, "http", "ws", 1)
	r, err := b.dial(own, nil, []step{send(text("home")), receive(1), end(1000, "")})
	if err != nil {
		t.Fatal(err)
	}
	home := exchange{messages: []message{text("home")}, closing: closing{1000, "", true}}
	home.check(t, r)

	l, err := peerws.ListenConfig{Address: "127.0.0.1"}.Listen(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if r, err = b.dial(fmt.Sprintf("ws://127.0.0.1:%d", l.Port()), nil, nil); err != nil {
		t.Fatal(err)
	}
	if r.Opened || r.Close == nil || *r.Close != (closing{1006, "", false}) || l.Stats().Refused != 1 {
		t.Errorf("a foreign page: %+v, %+v, listener %+v", r, r.Close, l.Stats())
	}
}
