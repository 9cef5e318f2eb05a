package nat

import (
	"errors"
	"time"
)

// An epoch is a gateway's own clock as one of its answers told it: the seconds
// since it last lost, or may have lost, what it had mapped.
type epoch struct {
	seconds uint32
	at      time.Time // when the answer came; zero if there was none
}

// An epochRule says whether cur can follow prev without a loss in between.
type epochRule func(prev, cur epoch) bool

// errStateLost is the cause when a gateway does not have a mapping any more.
var errStateLost = errors.New("the gateway has lost the mapping")

// pcpEpoch is the rule of RFC 6887 §8.5: the clock may step back by a second,
// since answers overtake each other, and else runs as ours does but for 1/16
// and two seconds, in both directions.
func pcpEpoch(prev, cur epoch) bool {
	server, client := int64(cur.seconds)-int64(prev.seconds), seconds(prev, cur)
	return server >= -1 && client+2 >= server-server/16 && server+2 >= client-client/16
}

// pmpEpoch is the rule of RFC 6886 §3.6: the clock may be too slow by 1/8 and
// two seconds, and is not too fast.
func pmpEpoch(prev, cur epoch) bool {
	return int64(cur.seconds)+2 >= int64(prev.seconds)+seconds(prev, cur)*7/8
}

func seconds(prev, cur epoch) int64 { return int64(cur.at.Sub(prev.at) / time.Second) }

// lost reports whether by that rule the gateway lost what it had. Without an
// earlier answer nobody can tell.
func (r epochRule) lost(prev, cur epoch) bool { return !prev.at.IsZero() && !r(prev, cur) }
