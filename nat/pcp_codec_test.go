package nat

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
)

// unhex reads bytes written down by hand.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var testNonce = pcpNonce{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}

// RFC 6887 §7.1, §11.1, §14.1.
func TestPCPAppend(t *testing.T) {
	client := netip.MustParseAddr("192.168.1.5")
	mapping := pcpMapping{nonce: testNonce, protocol: 6, internal: 9000, external: netip.MustParseAddrPort("203.0.113.7:9001")}
	unknown := mapping
	unknown.external = netip.AddrPortFrom(netip.Addr{}, 9001)
	client6 := netip.MustParseAddr("2001:db8:77::10")
	mapping6 := mapping
	mapping6.external = netip.AddrPortFrom(client6, 9000)
	for _, c := range []struct {
		name string
		q    pcpRequest
		want string
	}{
		{"announce", pcpRequest{opcode: pcpAnnounce, client: client},
			"02 00 0000 00000000 00000000000000000000ffffc0a80105"},
		{"map", pcpRequest{opcode: pcpMap, lifetime: 7200, client: client, mapping: mapping},
			"02 01 0000 00001c20 00000000000000000000ffffc0a80105" +
				"0102030405060708090a0b0c 06 000000 2328 2329 00000000000000000000ffffcb007107"},
		{"map, address unknown", pcpRequest{opcode: pcpMap, lifetime: 1, client: client, mapping: unknown},
			"02 01 0000 00000001 00000000000000000000ffffc0a80105" +
				"0102030405060708090a0b0c 06 000000 2328 2329 00000000000000000000ffff00000000"},
		{"delete", pcpRequest{opcode: pcpMap, client: client, mapping: pcpMapping{nonce: testNonce, protocol: 6, internal: 9000}},
			"02 01 0000 00000000 00000000000000000000ffffc0a80105" +
				"0102030405060708090a0b0c 06 000000 2328 0000 00000000000000000000ffff00000000"},
		{"announce, IPv6", pcpRequest{opcode: pcpAnnounce, client: client6},
			"02 00 0000 00000000 20010db8007700000000000000000010"},
		{"map, IPv6", pcpRequest{opcode: pcpMap, lifetime: 7200, client: client6, mapping: mapping6},
			"02 01 0000 00001c20 20010db8007700000000000000000010" +
				"0102030405060708090a0b0c 06 000000 2328 2328 20010db8007700000000000000000010"},
		{"map, IPv6, address unknown", pcpRequest{opcode: pcpMap, lifetime: 7200, client: client6, mapping: unknown},
			"02 01 0000 00001c20 20010db8007700000000000000000010" +
				"0102030405060708090a0b0c 06 000000 2328 2329 00000000000000000000000000000000"},
		{"delete, IPv6", pcpRequest{opcode: pcpMap, client: client6, mapping: pcpMapping{nonce: testNonce, protocol: 6, internal: 9000}},
			"02 01 0000 00000000 20010db8007700000000000000000010" +
				"0102030405060708090a0b0c 06 000000 2328 0000 00000000000000000000000000000000"},
	} {
		if got, want := c.q.append([]byte("x")), append([]byte("x"), unhex(t, c.want)...); !bytes.Equal(got, want) {
			t.Errorf("%s:\ngot  %x\nwant %x", c.name, got, want)
		}
	}
}

const goldenMapAnswer = "02 81 00 00 00000e10 00012345 000000000000000000000000" +
	"0102030405060708090a0b0c 06 000000 2328 2329 00000000000000000000ffffcb007107"

// RFC 6887 §7.2, §8.3, §9, §11.1.
func TestPCPParse(t *testing.T) {
	mapping := pcpMapping{nonce: testNonce, protocol: 6, internal: 9000, external: netip.MustParseAddrPort("203.0.113.7:9001")}
	for _, c := range []struct {
		name, in string
		want     pcpResponse
		ok       bool
	}{
		{"announce", "02 80 00 00 00000000 00000007 000000000000000000000000", pcpResponse{opcode: 0, epoch: 7}, true},
		{"map", goldenMapAnswer, pcpResponse{opcode: 1, lifetime: 3600, epoch: 0x12345, mapping: mapping}, true},
		{"map with an option behind it", goldenMapAnswer + "02 00 0000", pcpResponse{opcode: 1, lifetime: 3600, epoch: 0x12345, mapping: mapping}, true},
		{"map with an error", "02 81 00 02 00000708 00000001 000000000000000000000000" +
			"0102030405060708090a0b0c 06 000000 2328 2329 00000000000000000000000000000000",
			pcpResponse{opcode: 1, code: 2, lifetime: 1800, epoch: 1, mapping: pcpMapping{nonce: testNonce, protocol: 6, internal: 9000, external: netip.AddrPortFrom(netip.IPv6Unspecified(), 9001)}}, true},
		{"map, IPv6", "02 81 00 00 00000e10 00000005 000000000000000000000000" +
			"0102030405060708090a0b0c 06 000000 2328 2328 20010db8007700000000000000000010",
			pcpResponse{opcode: 1, lifetime: 3600, epoch: 5, mapping: pcpMapping{nonce: testNonce, protocol: 6, internal: 9000, external: netip.MustParseAddrPort("[2001:db8:77::10]:9000")}}, true},
		{"NAT-PMP refuses the version", "00 81 0001 00000005", pcpResponse{opcode: 1, code: 1}, true},
		{"NAT-PMP refuses the version, short", "00 80 0001", pcpResponse{opcode: 0, code: 1}, true},
		{"version 1 refuses version 2", "01 81 00 01 00000000 00000005 000000000000000000000000", pcpResponse{opcode: 1, code: 1}, true},
		{"version 2 refuses itself", "02 80 00 01 00000708 00000005 000000000000000000000000", pcpResponse{code: 1, lifetime: 1800, epoch: 5}, true},
		{"NAT-PMP answers something else", "00 80 0000 00000005 cb007107", pcpResponse{}, false},
		{"NAT-PMP with another code", "00 81 0101 00000005", pcpResponse{}, false},
		{"a request", "02 00 0000 00000000 00000000000000000000ffffc0a80105", pcpResponse{}, false},
		{"a short header", "02 80 00 00 00000000 00000007 0000000000000000", pcpResponse{}, false},
		{"no multiple of four", "02 80 00 00 00000000 00000007 000000000000000000000000 00", pcpResponse{}, false},
		{"a short map", goldenMapAnswer[:len(goldenMapAnswer)-8], pcpResponse{}, false},
		{"too long", goldenMapAnswer + strings.Repeat("00", 1044), pcpResponse{}, false},
		{"nothing", "", pcpResponse{}, false},
	} {
		got, ok := parsePCP(unhex(t, c.in))
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%s: got %+v, %v; want %+v, %v", c.name, got, ok, c.want, c.ok)
		}
	}
}

// RFC 6887 §8.3 and §11.4: what an answer must have in common with the question.
func TestPCPAnswers(t *testing.T) {
	q := pcpRequest{opcode: pcpMap, mapping: pcpMapping{nonce: testNonce, protocol: 6, internal: 9000}}
	r, ok := parsePCP(unhex(t, goldenMapAnswer))
	if !ok || !r.answers(q) {
		t.Fatalf("%+v does not answer", r)
	}
	for name, f := range map[string]func(*pcpRequest){
		"opcode":        func(q *pcpRequest) { q.opcode = pcpAnnounce },
		"nonce":         func(q *pcpRequest) { q.mapping.nonce[11]++ },
		"protocol":      func(q *pcpRequest) { q.mapping.protocol = 17 },
		"internal port": func(q *pcpRequest) { q.mapping.internal++ },
	} {
		other := q
		if f(&other); r.answers(other) {
			t.Errorf("answers another %s", name)
		}
	}
}

// What comes from the network breaks nothing, and what we understand of it is
// what is there.
func FuzzPCP(f *testing.F) {
	for _, s := range []string{
		goldenMapAnswer, "00 81 0001 00000005", "02 80 00 00 00000000 00000007 000000000000000000000000",
		"02 81 00 08 00000000 00000007 000000000000000000000000 0102030405060708090a0b0c 06 000000 2328 2329 00000000000000000000ffff64400001",
	} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, ok := parsePCP(b)
		if announcesEpoch(b) && !ok && len(b) != 12 {
			t.Fatalf("%x announces something", b)
		}
		if !ok {
			return
		}
		if b[1] != 0x80|r.opcode || b[3] != r.code || len(b) > pcpMaxSize && b[0] == pcpVersion {
			t.Fatalf("%x read as %+v", b, r)
		}
		if b[0] != pcpVersion {
			if (r != pcpResponse{opcode: r.opcode, code: pcpUnsupportedVersion}) {
				t.Fatalf("%x read as %+v", b, r)
			}
			return
		}
		// The same fields written as a request are the same bytes, but for
		// what a request has elsewhere.
		q := pcpRequest{opcode: r.opcode, lifetime: r.lifetime, mapping: r.mapping}
		if !r.answers(q) {
			t.Fatalf("%+v does not answer its own question", r)
		}
		w := q.append(nil)
		if !bytes.Equal(w[4:8], b[4:8]) {
			t.Fatalf("lifetime: %x became %x", b, w)
		}
		if r.opcode == pcpMap && (!bytes.Equal(w[24:37], b[24:37]) || !bytes.Equal(w[40:60], b[40:60])) {
			t.Fatalf("mapping: %x became %x", b, w)
		}
		if e, ok := refusal(r).(*Error); r.code != 0 && (!ok || e.Kind == 0 || e.RetryAfter <= 0 || e.RetryAfter > pcpMaxError) {
			t.Fatalf("%+v is %+v", r, e)
		}
	})
}
