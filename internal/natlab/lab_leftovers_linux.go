package natlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

func namespaceName(id, role string) string { return "pw-" + id + "-" + role }

var namespacePattern = regexp.MustCompile(`(?m)^pw-([0-9a-f]{8})-\w+`)

// claim makes the lab's directory and locks it for as long as this process
// lives, however that ends. It first takes down labs whose process is gone.
func claim(dir string) (*os.File, error) {
	var lock *os.File
	err := withRootLock(func() error {
		if err := sweep(); err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		var err error
		lock, err = lockFile(filepath.Join(dir, "lock"), syscall.LOCK_EX|syscall.LOCK_NB)
		return err
	})
	return lock, err
}

// withRootLock keeps one process at a time at making and removing lab
// directories, so that a lab being made is not taken for a dead one.
func withRootLock(f func() error) error {
	if err := os.MkdirAll(labRoot, 0o700); err != nil {
		return err
	}
	lock, err := lockFile(filepath.Join(labRoot, "lock"), syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()
	return f()
}

func lockFile(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), how); err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return f, nil
}

// sweep takes down what killed test processes have left behind: labs whose
// lock nobody holds.
func sweep() error {
	ids := map[string]bool{}
	entries, err := os.ReadDir(labRoot)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			ids[e.Name()] = true
		}
	}
	list, err := exec.Command("ip", "netns", "list").Output()
	if err != nil {
		return fmt.Errorf("ip netns list: %w", err)
	}
	for _, m := range namespacePattern.FindAllSubmatch(list, -1) {
		ids[string(m[1])] = true
	}
	for id := range ids {
		lock, err := lockFile(filepath.Join(labRoot, id, "lock"), syscall.LOCK_EX|syscall.LOCK_NB)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			continue // its process lives
		}
		if err == nil {
			lock.Close()
		}
		if err := demolish(id); err != nil {
			return err
		}
	}
	return nil
}

// demolish ends every process in the lab's namespaces, and removes these and
// the lab's directory. What is gone already is no error.
func demolish(id string) error {
	list, err := exec.Command("ip", "netns", "list").Output()
	if err != nil {
		return fmt.Errorf("ip netns list: %w", err)
	}
	var errs []error
	for _, m := range namespacePattern.FindAllSubmatch(list, -1) {
		if string(m[1]) != id {
			continue
		}
		name := string(m[0])
		pids, err := exec.Command("ip", "netns", "pids", name).Output()
		if err != nil {
			errs = append(errs, fmt.Errorf("ip netns pids %s: %w", name, err))
		}
		for field := range strings.FieldsSeq(string(pids)) {
			// The threads that enter a namespace are this process's own.
			if pid, err := strconv.Atoi(field); err == nil && pid != os.Getpid() {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		if out, err := exec.Command("ip", "netns", "delete", name).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("ip netns delete %s: %w: %s", name, err, out))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(filepath.Join(labRoot, id)))...)
}
