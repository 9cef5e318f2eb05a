package nat

import (
	"context"
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Looking into a gateway's table of forwards. Only UPnP has a way to do that;
// many gateways put there what was made in the other protocols as well.

// A PortEntry is a line of a gateway's table: a TCP port that it forwards.
type PortEntry struct {
	External    uint16
	Internal    netip.AddrPort // who gets the connections
	Description string         // as its owner called it; not to be trusted
	Lifetime    time.Duration  // what is left of it; 0 = no end, or not said
}

// How much of a table is read.
const (
	maxEntries     = 64 // lines of the table, whoever's they are
	entriesTimeout = 4 * time.Second

	maxEntryText = 64 // bytes of a description, or of a router's name, that are kept
)

// A tableLine is what the table's actions answer (WANIPConnection:2 §2.6.13,
// §2.6.14); the specific one leaves out what it was asked for.
type tableLine struct {
	NewExternalPort           string
	NewProtocol               string
	NewInternalPort           string
	NewInternalClient         string
	NewPortMappingDescription string
	NewLeaseDuration          string
}

// entry is the line as a value; ok is false if it makes no sense.
func (l *tableLine) entry() (e PortEntry, ok bool) {
	external, err := strconv.ParseUint(strings.TrimSpace(l.NewExternalPort), 10, 16)
	if err != nil || !strings.EqualFold(strings.TrimSpace(l.NewProtocol), "TCP") {
		return PortEntry{}, false
	}
	port, err := strconv.ParseUint(strings.TrimSpace(l.NewInternalPort), 10, 16)
	if err != nil {
		return PortEntry{}, false
	}
	client := parseClient(l.NewInternalClient)
	e = PortEntry{External: uint16(external), Internal: netip.AddrPortFrom(client, uint16(port)), Description: printable(l.NewPortMappingDescription)}
	if seconds, err := strconv.ParseUint(strings.TrimSpace(l.NewLeaseDuration), 10, 32); err == nil {
		e.Lifetime = time.Duration(seconds) * time.Second
	}
	return e, true
}

// printable is what of a stranger's text can be shown on a terminal.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == '\uFFFD' || !strconv.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	if len(s) > maxEntryText {
		s = strings.ToValidUTF8(s[:maxEntryText], "")
	}
	return s
}

// entriesOf lists who has the external port, and which others lead to our own
// one. A gateway that cannot list its table tells the first at least.
func (s *service) entriesOf(ctx context.Context, port uint16) []PortEntry {
	ctx, cancel := context.WithTimeout(ctx, entriesTimeout)
	defer cancel()
	var all []PortEntry
	out := tableLine{}
	key := mappingKey{NewExternalPort: formatPort(port), NewProtocol: "TCP"}
	if s.call(ctx, "GetSpecificPortMappingEntry", &key, &out) == nil {
		out.NewExternalPort, out.NewProtocol = key.NewExternalPort, key.NewProtocol
		if e, ok := out.entry(); ok && e.Internal.Addr().IsValid() {
			all = append(all, e)
		}
	}
	own := netip.AddrPortFrom(s.device.hit.link.local, port)
	for e := range s.table(ctx) {
		if e.Internal.Addr().IsValid() && (e.External == port || e.Internal == own) && !slices.ContainsFunc(all, func(x PortEntry) bool { return x.External == e.External }) {
			all = append(all, e)
		}
	}
	return all
}

// table goes through the gateway's table, or its first maxEntries lines.
func (s *service) table(ctx context.Context) iter.Seq[PortEntry] {
	return func(yield func(PortEntry) bool) {
		for i := range maxEntries {
			in := struct{ NewPortMappingIndex string }{strconv.Itoa(i)}
			out := tableLine{}
			if s.call(ctx, "GetGenericPortMappingEntry", &in, &out) != nil {
				return // 713 is the end; what else it may say helps nobody
			}
			if e, ok := out.entry(); ok && !yield(e) {
				return
			}
		}
	}
}

// elsewhere finds an entry of ours at another external port than expected, that of
// a gateway that takes another one without a word.
func (s *service) elsewhere(ctx context.Context, w wanted) (entry, bool) {
	ctx, cancel := context.WithTimeout(ctx, entriesTimeout)
	defer cancel()
	for p := range s.table(ctx) {
		e := entry{client: p.Internal.Addr(), port: p.Internal.Port(), lease: p.Lifetime, external: p.External, description: p.Description}
		if e.external != w.external && e.ours(w.internal, w.description) && likeDescription(e.description, w.description) {
			return e, true
		}
	}
	return entry{}, false
}
