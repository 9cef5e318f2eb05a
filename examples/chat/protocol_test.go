package main

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestCleanName(t *testing.T) {
	for in, want := range map[string]string{
		"ann":                     "ann",
		"  Ann   Lee\t":           "Ann Lee",
		"":                        "guest",
		"\x00\x1b[31m":            "31m",
		"* bob joined":            "bob joined",
		"bob: hi":                 "bob hi",
		"<script>":                "script",
		"Zoë":                     "Zoë",
		"李雷":                      "李雷",
		"🦉 owl":                   "🦉 owl",
		"a\u202eb\u200bc\xff":     "abc",
		strings.Repeat("x", 30):   strings.Repeat("x", maxName),
		strings.Repeat("é", 23):   strings.Repeat("é", 23),
		strings.Repeat("x ", 100): strings.TrimSpace(strings.Repeat("x ", 12)),
	} {
		if got := cleanName(in); got != want {
			t.Errorf("cleanName(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestCleanText(t *testing.T) {
	for in, want := range map[string]string{
		"hello":              "hello",
		" a  b ":             "a  b",
		"a\nb\tc":            "a b c",
		"\x1b]0;title\x07x":  "]0;titlex",
		"\u009b31m red":      "31m red",
		"a\u202eb\u2066c":    "abc",
		"👩\u200d👩\u200d👧":    "👩\u200d👩\u200d👧",
		"bad \xff\xfe bytes": "bad \uFFFD bytes",
		"\r\n":               "",
		"eve\r\nbob: forged": "eve bob: forged",
		"line\u2028sep":      "line sep",
	} {
		if got := cleanText(in); got != want {
			t.Errorf("cleanText(%q) = %q, want %q", in, got, want)
		}
	}
}

// What any peer sends ends as one line without commands to the terminal.
func FuzzShow(f *testing.F) {
	f.Add([]byte(`{"type":"say","name":"ann","text":"hi\u001b[2J\n"}`))
	f.Add([]byte(`{"type":"leave","name":"\n","why":"\r\nx"}`))
	f.Add([]byte(`{"type":"welcome","name":"a","members":["b\u0007"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, ok := decode(data)
		if !ok {
			return
		}
		s := show(m, m.Name)
		for _, r := range s {
			if r < ' ' || r >= 0x7f && r < 0xa0 {
				t.Errorf("%q shows control character %U", s, r)
			}
		}
		if !utf8.ValidString(s) {
			t.Errorf("%q is not UTF-8", s)
		}
	})
}

func TestDecode(t *testing.T) {
	for _, bad := range []string{"", "null", "[]", "{}", `{"type":1}`, `{"type":"say","text":7}`, "x"} {
		if m, ok := decode([]byte(bad)); ok {
			t.Errorf("decode(%s) = %+v", bad, m)
		}
	}
	if m, ok := decode([]byte(encode(message{Type: typeSay, Text: "<&>\u2028"}))); !ok || m.Text != "<&>\u2028" {
		t.Errorf("%+v", m)
	}
}
