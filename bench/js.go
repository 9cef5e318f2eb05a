//go:build linux

package main

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The servers that are not written in Go. They take the flags of serverFlags
// and answer "stats" and "gc" with one line, as runServer does.
var (
	//go:embed js/bun.js
	bunSource string
	//go:embed js/node.cjs
	nodeSource string
)

func bunCommand(scratch string) (args []string, version string, missing error) {
	path, err := exec.LookPath("bun")
	if err != nil {
		return nil, "", errors.New("bun is not installed")
	}
	file := filepath.Join(scratch, "bun.js")
	if err := os.WriteFile(file, []byte(bunSource), 0o600); err != nil {
		return nil, "", err
	}
	out, err := exec.Command(path, "--version").Output()
	return []string{path, file}, strings.TrimSpace(string(out)), err
}

func nodeCommand(scratch string) (args []string, version string, missing error) {
	path, err := exec.LookPath("node")
	if err != nil {
		return nil, "", errors.New("node is not installed")
	}
	file := filepath.Join(scratch, "node.cjs")
	if err := os.WriteFile(file, []byte(nodeSource), 0o600); err != nil {
		return nil, "", err
	}
	modules, err := wsModules(path)
	if err != nil {
		return nil, "", err
	}
	out, err := exec.Command(path, "-e", "console.log(process.version, 'ws', require(process.argv[1]+'/ws/package.json').version)", modules).Output()
	return []string{path, file, "-modules", modules}, strings.TrimSpace(string(out)), err
}

// wsModules is the directory of modules that has node's package ws: the one the
// browser tests install, or one that node itself finds.
func wsModules(node string) (string, error) {
	candidates := []string{"../internal/browsertest/node_modules"}
	if out, err := exec.Command(node, "-p", "require('path').dirname(require('path').dirname(require.resolve('ws/package.json')))").Output(); err == nil {
		candidates = append(candidates, strings.TrimSpace(string(out)))
	}
	for _, c := range candidates {
		if _, err := os.Stat(filepath.Join(c, "ws", "package.json")); err == nil {
			return filepath.Abs(c)
		}
	}
	return "", fmt.Errorf("node's package ws is not installed ((cd ../internal/browsertest && npm ci) does that)")
}
