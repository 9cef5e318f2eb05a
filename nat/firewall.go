package nat

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
)

// This machine's own firewall: what can be read of it without privilege, and the
// command that opens a port in it.

// A firewall is one that a machine may have.
type firewall struct {
	name    string
	active  func() bool
	command string // with the port as its verb
}

// firewalls are those of this system, the first that is active being the one.
func firewalls(goos string) []firewall {
	switch goos {
	case "linux":
		return []firewall{
			{"ufw", func() bool { return fileHas("/etc/ufw/ufw.conf", "ENABLED=yes") }, "sudo ufw allow %d/tcp"},
			{"firewalld", func() bool { return exists("/run/firewalld") || exists("/run/firewalld.pid") }, "sudo firewall-cmd --add-port=%d/tcp"},
		}
	case "windows":
		return []firewall{{"Windows", func() bool { return true }, `netsh advfirewall firewall add rule name=peerws dir=in action=allow protocol=TCP localport=%d`}}
	}
	return nil
}

// adviceFirewall says what to do about this machine's firewall, if peers cannot
// connect to its port.
func adviceFirewall(port uint16) string {
	if port == 0 { // of a probe that is about none
		return "If peers cannot connect, look at this machine's own firewall."
	}
	for _, f := range firewalls(runtime.GOOS) {
		if f.active() {
			return fmt.Sprintf("If peers cannot connect, allow the port in this machine's firewall (%s): "+f.command, f.name, port)
		}
	}
	return fmt.Sprintf("If peers cannot connect, allow TCP port %d in this machine's firewall, if it has one.", port)
}

// alsoFirewall says of this machine's firewall that it is in the way as well, when
// there is something to be done at the router.
func alsoFirewall(port uint16) string {
	for _, f := range firewalls(runtime.GOOS) {
		if f.active() {
			return fmt.Sprintf("This machine's firewall (%s) has to let it in, too: "+f.command, f.name, port)
		}
	}
	return fmt.Sprintf("This machine's own firewall, if it has one, has to let TCP port %d in, too.", port)
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

func fileHas(name, text string) bool {
	b, err := os.ReadFile(name)
	return err == nil && bytes.Contains(bytes.ToLower(b), bytes.ToLower([]byte(text)))
}
