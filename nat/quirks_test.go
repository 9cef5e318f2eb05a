package nat

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/peerws/peerws/internal/natlab"
)

// What users of other programs suffer, and what routers do, each with the
// tests that show how it goes with us: "Test" or "Test/name of its row", in
// this package or, with "lab:" before it, at the real gateway of
// internal/natlab. TestQuirksAreTested fails when one is not there any more.
var quirks = []struct{ what, tests string }{
	// What hurts users.
	{"1 the router restarts with its UPnP server at another port", "TestUPnPReboot, TestUPnPRebootOfMany, TestChecks, lab:testReboot, lab:testSilentRebootLong"},
	{"2 the line drops, or the machine sleeps, and the mapping is gone", "TestManagerReboot, TestManagerMoves, TestManagerWakes, TestManagerWeeks, lab:testWANDown, lab:testSleep"},
	{"3 only leases without end (725)", "TestUPnPQuirks/725 only permanent leases, TestUPnPQuirks/725 on IGD2, TestUPnPRemembersPermanent"},
	{"4 the same said as 402, 501 or a bare 500", "TestUPnPQuirks/402 for 725, TestUPnPQuirks/501 for 725, TestUPnPQuirks/bare 500 for 725"},
	{"5 no leases without end", "TestUPnPQuirks/402 also for 0"},
	{"6 the table fills with old entries of ours", "TestAlternatives, TestUPnPQuirks/718 although it is ours, lab:testKill"},
	{"7 conflicts in a loop", "TestUPnPQuirks/718 for ever, TestUPnPQuirks/718 because our internal port has another external one, TestManagerBackoff"},
	{"8 forwards made by hand are overwritten", "TestUPnPQuirks/taken, and it would overwrite, TestUPnPQuirks/another program of this machine has it, lab:testConflict"},
	{"9 the external port jumps", "TestManagerMapsRenewsUnmaps, TestManagerLosesAndRegains, TestMovedKeepsPort"},
	{"10 internal and external port are swapped", "TestNATPMPOtherPort, TestPCPRenewalSuggests, TestUPnPReboot"},
	{"11 minutes of asking a gateway that does not speak NAT-PMP", "TestNATPMPSchedule, TestPCPSchedule, lab:testNoMapping"},
	{"12 searches are answered only by multicast, or only by unicast", "TestUPnPSearches/multicast only, TestUPnPSearches/unicast only"},
	{"13 answers from another port, or to some questions only", "TestUPnPSearches/from another port, TestUPnPSearches"},
	{"14 the protocol in lower case is refused", "TestUPnP"}, // the fake refuses it with 402
	{"15 the location is not at the gateway", "TestUPnPOtherDevice, TestCheckLocation"},
	{"16 several WANs, the first one down", "TestUPnPChoice"},
	{"17 types of old drafts, or no service at all", "TestUPnP, TestUPnPHostile/no WAN service, TestFindServices"},
	{"18 IGD:1 that has :2, and the other way round", "TestUPnP, TestUPnPQuirks/IGD2 without AddAnyPortMapping, TestFindServices/best first, once per URL"},
	{"19 behind another NAT, in silence", "TestUPnPExternal, TestPCPBehind, TestAnyAtGateway/behind another NAT, lab:testNoMapping"},
	{"20 the wrong interface", "TestBoundAddress, TestLinks"},
	{"21 short leases, and ones that are not as long as they say", "TestManagerRenewalPoints, TestShortLease, TestPCPModest, TestUPnPQuirks/shows a shorter lease"},
	{"22 left open after the end", "TestManagerCloseIsPrompt, TestNATPMPCancel, TestPCPCancel, TestUPnPCancelUndoes, lab:testStopWhileAsking, lab:testStopWhileDeaf"},
	{"23 entries without traffic are dropped", "TestManagerRenewalPoints, TestManagerHeartbeat, TestChecks"},
	{"24 garbage datagrams", "TestUPnPHostile/garbage datagrams, TestPCPIgnores, TestNATPMPIgnores, TestParseSSDP"},

	// Searches and descriptions.
	{"header names in any case, blanks in odd places", "TestParseSSDP/any case, no space, TestParseSSDP/space before the colon, TestParseSSDP/blank line first"},
	{"URLBase absent, wrong, or of another host", "TestFindServices/URLBase elsewhere, TestUPnPQuirks/URLBase wrong, control URL without a slash, TestUPnPHostile/URLBase elsewhere"},
	{"control URLs absolute, without a slash, elsewhere", "TestFindServices/absolute, another port, TestFindServices/without leading slash, TestUPnPHostile/control URL elsewhere"},
	{"ISO-8859-1, GB2312, utf8", "TestUPnPQuirks/answers in Latin-1, TestUPnPQuirks/describes itself in GB2312, TestFindServices/declared as utf8"},
	{"a redirect, 100 MB, an endless body, a slow one", "TestUPnPHostile/redirect, TestUPnPHostile/redirected control, TestUPnPHostile/huge description, TestUPnPHostile/huge header, TestUPnPSlow"},
	{"evil locations, by the hundred, in the gateway's name", "TestUPnPHostile/a flood of locations, TestUPnPForged, TestSearchCrowded, TestUPnPForeignNetwork, lab:testHostile"},

	// Calls.
	{"faults with capitals, other prefixes, status 200, in lower case, without a detail, as web pages", "TestUPnPQuirks/faults with capital letters, TestUPnPQuirks/faults with another prefix, TestUPnPQuirks/faults with status 200, TestUPnPQuirks/faults in lower case, TestUPnPQuirks/faults without a detail, TestUPnPQuirks/faults as a web page, TestParseFault"},
	{"an outside address that is none", "TestUPnPExternal"},
	{"forwards, and does not tell its address", "TestUntoldAddress"},
	{"has only some ports to give: MAP-E, lists of ports that are allowed", "TestPortsRefused, TestUPnPQuirks/606 not authorized"},
	{"status Connected or Up, or none", "TestUPnPExternal, TestUPnPChoice/down, mute"},
	{"says yes and keeps nothing; shows another lease; shows no entries", "TestUPnPQuirks/says yes and keeps nothing, TestUPnPQuirks/shows a lease for none, TestUPnPQuirks/cannot show entries, TestUPnPQuirks/shows nonsense for entries"},
	{"overwrites an entry in the same moment; shows entries late", "TestUPnPOverwritten, TestUPnPShowsLate, TestKeeperConfirms"},
	{"external ports are internal ones, said (724) or not", "TestUPnPQuirks/724 same ports, TestUPnPQuirks/724 although they are, TestUPnPQuirks/maps only same ports, and does not say so"},
	{"401, 602 no such action", "TestUPnPQuirks/401 no such action, TestUPnPQuirks/IGD2 without AddAnyPortMapping"},
	{"402, 500, 501 whatever is asked", "TestUPnPQuirks/402 whatever is asked, TestUPnPQuirks/bare 500 whatever is asked, TestUPnPQuirks/501 whatever is asked"},
	{"606, 715, 716, 725, 726, 727", "TestUPnPQuirks/606 not authorized, TestUPnPQuirks/715 no wildcard for the sender, TestUPnPQuirks/716 no wildcard for the port, TestUPnPQuirks/725 whatever is asked, TestUPnPQuirks/726 only wildcard senders, TestUPnPQuirks/727 only wildcard ports"},
	{"714 no such entry", "TestUPnP, TestUPnPQuirks/says yes and keeps nothing, TestChecks"},
	{"718, 728, 729", "TestUPnPQuirks/718 somebody has it, TestUPnPQuirks/728 table full, TestUPnPQuirks/IGD2 refuses with 728, TestUPnPQuirks/729 other mechanism"},
	{"AddAnyPortMapping gives another port", "TestUPnPQuirks/IGD2 with another port, TestUPnPQuirks/IGD2 reserves nonsense"},
	{"exact SOAPAction, Content-Length, Connection: close, Host with port", "TestUPnP, TestBoundAddress"},
	{"answers that take their time, one call at a time", "TestUPnPQuirks/answers after a while, TestUPnPVerySlow, TestUPnPSlow, TestUPnPOneCallAtATime"},
	{"descriptions of few letters, with the port", "TestDescribeMapping"},

	// PCP and NAT-PMP.
	{"PCP result codes 1 to 13", "TestPCPCodes, TestPCPErrorStands"},
	{"NAT-PMP result codes 1 to 5", "TestNATPMPFailures/1 unsupported version, TestNATPMPFailures/2 refused to a map, TestNATPMPFailures/3 network failure, TestNATPMPFailures/4 out of resources, TestNATPMPFailures/5 unsupported opcode"},
	{"one version of the two only, or neither", "TestPCPVersions, TestNATPMPFailures/PCP only, TestNATPMPFailures/closed port"},
	{"silence, slowness", "TestNATPMPFailures/silence, TestNATPMPFailures/too slow, TestNATPMPFailures/silence to a map, TestPCPSchedule, TestAnyAtGateway/PCP swallows mappings, lab:testNoMapping, lab:testSwallow"},
	{"wrong nonce, wrong source, wrong port, cut short", "TestPCPIgnores/wrong nonce, TestPCPIgnores/strange, TestNATPMPIgnores/strange, TestNATPMPIgnores/wrong internal port, TestNATPMPFailures/cut off"},
	{"epoch reset", "TestEpochRules, TestChecks, TestManagerAtRebootedGateway"},
	{"forged announcements, by the thousand", "TestHear, TestManagerAnnouncement, TestNotices, lab:testHostile"},
	{"a delete of what is not there", "TestPCPUnmap, TestNATPMP"},
}

func TestQuirksAreTested(t *testing.T) {
	read := func(dir string) string {
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil || len(files) == 0 {
			t.Fatal(dir, err)
		}
		var all strings.Builder
		for _, name := range files {
			if filepath.Base(name) == "quirks_test.go" {
				b, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				_, after, _ := strings.Cut(string(b), "\nfunc TestQuirksAreTested")
				all.WriteString(after)
				continue
			}
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			all.Write(b)
		}
		return all.String()
	}
	here, lab := read("."), read("../internal/natlab")
	for _, q := range quirks {
		tests := strings.Split(q.tests, ", ")
		for i := 0; i < len(tests); i++ {
			where, name := here, tests[i]
			if after, ok := strings.CutPrefix(name, "lab:"); ok {
				where, name = lab, after
			}
			name, row, _ := strings.Cut(name, "/")
			// A comma may be part of a row's name.
			for row != "" && i+1 < len(tests) && !strings.HasPrefix(tests[i+1], "Test") && !strings.HasPrefix(tests[i+1], "lab:") {
				i++
				row += ", " + tests[i]
			}
			if !strings.Contains(where, "func "+name+"(t ") {
				t.Errorf("%s: there is no %s", q.what, name)
			}
			if row != "" && !strings.Contains(where, `"`+row+`"`) {
				t.Errorf("%s: %s has no %q", q.what, name, row)
			}
		}
	}
}

// What is granted counts, not what was asked for.
func TestShortLease(t *testing.T) {
	t.Parallel()
	f := natlab.StartFake(t, natlab.FakeConfig{PMP: natlab.FakePMP{Serve: true, External: publicIP, Edit: func(b []byte) []byte {
		if b[1] == 130 {
			binary.BigEndian.PutUint32(b[12:], 60)
		}
		return b
	}}})
	l, err := testPMP(f).Map(t.Context(), request(9000))
	if err != nil || l.Lifetime != time.Minute {
		t.Errorf("%+v, %v", l, err)
	}
	if at := firstRenewal(l, 1); at > 38*time.Second {
		t.Errorf("renewed after %v", at)
	}
}
