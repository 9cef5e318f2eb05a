//go:build linux

package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
)

// about is what the numbers depend on, a line each.
func about(servers []*contestant) []string {
	model := "an unknown CPU"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	lines := []string{fmt.Sprintf("%d × %s, %s", runtime.NumCPU(), model, runtime.GOARCH), "Linux " + strings.TrimSpace(string(kernel)) + ", " + runtime.Version()}
	var versions []string
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			switch m.Path {
			case "github.com/gorilla/websocket", "github.com/coder/websocket", "github.com/lxzan/gws", "github.com/gobwas/ws":
				versions = append(versions, strings.TrimPrefix(m.Path, "github.com/")+" "+m.Version)
			}
		}
	}
	for _, c := range servers {
		if c.version != "" {
			versions = append(versions, c.name+" "+c.version)
		}
	}
	return append(lines, strings.Join(versions, ", "))
}
