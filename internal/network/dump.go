package network

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// dumpTries bounds how often the kernel is asked for a list that changes meanwhile.
const dumpTries = 50

// whole asks the kernel for a list until it is of one moment: where links and addresses
// come and go, a dump that was overtaken by a change is marked as such (rtnetlink(7),
// NLM_F_DUMP_INTR) and may lack anything.
func whole[T any](dump func() ([]T, error)) (list []T, err error) {
	for range dumpTries {
		if list, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return list, err
		}
	}
	return nil, err
}

func addressesV4() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) }

func routesV4() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_V4) }
