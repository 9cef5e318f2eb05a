//go:build !(linux || darwin || dragonfly || freebsd || netbsd || openbsd || windows)

package nat

import "errors"

// defaultRoutes is not known on this system: the first addresses of the
// private subnets are guessed instead.
func defaultRoutes() ([]route, error) {
	return nil, errors.ErrUnsupported
}
