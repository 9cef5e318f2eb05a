//go:build !(linux || darwin || dragonfly || freebsd || netbsd || openbsd || windows)

package nat

import "errors"

// defaultRoutes is not known on this system: the first addresses of the
// private subnets are guessed instead.
func defaultRoutes() ([]route, error) {
	return nil, errors.ErrUnsupported
}

// defaultRoutes6 is not known either, and for IPv6 there is nothing to guess.
func defaultRoutes6() ([]route, error) {
	return nil, errors.ErrUnsupported
}
