package cli

import (
	"os"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/region"
)

// settleDriver settles which driver runs new guests and where. Of what is said in
// several places the nearest goes first, and what does not fit to that is left out:
// --driver qemu is no contradiction to a KAMI_CONNECT that is there for libvirt.
func (a *app) settleDriver(conf config) error {
	driver, connect := "", ""
	for _, said := range [][2]string{
		{a.flags.driver, a.flags.connect},
		{os.Getenv("KAMI_DRIVER"), os.Getenv("KAMI_CONNECT")},
		{conf.Driver, conf.Connect},
	} {
		d, c := said[0], said[1]
		if d != "" && !slices.Contains(region.Drivers(), d) {
			return usagef("the driver %q is not one of %s", d, strings.Join(region.Drivers(), ", "))
		}
		if !region.DriverFits(d, c) {
			return usagef("the driver %s has no guests at %s: leave out one of the two", d, c)
		}
		if driver == "" && region.DriverFits(d, connect) {
			driver = d
		}
		if connect == "" && region.DriverFits(driver, c) {
			connect = c
		}
	}
	a.flags.driver, a.flags.connect = driver, connect
	return nil
}
