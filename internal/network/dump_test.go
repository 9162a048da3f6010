package network

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestInterruptedDumpsAreRepeated(t *testing.T) {
	interrupted := 3
	list, err := whole(func() ([]int, error) {
		if interrupted--; interrupted >= 0 {
			return []int{1}, netlink.ErrDumpInterrupted
		}
		return []int{1, 2}, nil
	})
	if err != nil || len(list) != 2 {
		t.Errorf("%v, %v", list, err)
	}
	if list, err := whole(func() ([]int, error) { return []int{1}, netlink.ErrDumpInterrupted }); !errors.Is(err, netlink.ErrDumpInterrupted) || list != nil {
		t.Errorf("a list that is never whole: %v, %v", list, err)
	}
	other := errors.New("other")
	if _, err := whole(func() ([]int, error) { return nil, other }); !errors.Is(err, other) {
		t.Error(err)
	}
}
