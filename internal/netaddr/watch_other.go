//go:build !linux

package netaddr

import (
	"context"
	"errors"
)

// Watch calls changed each time the system says that an address, a default route or
// an interface of this machine has changed. Here it says nothing: the caller has to
// look by itself.
func Watch(context.Context, func()) error { return errors.ErrUnsupported }
