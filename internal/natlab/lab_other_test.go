//go:build !linux

package natlab

import (
	"os"
	"testing"
)

func TestLabNeedsLinux(t *testing.T) {
	if os.Getenv("PEERWS_LAB") == "1" {
		t.Fatal("PEERWS_LAB=1 needs Linux, for its network namespaces")
	}
}
