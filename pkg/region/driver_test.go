package region

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/qemu"
)

func TestDriverFits(t *testing.T) {
	tests := []struct {
		driver, uri string
		want        bool
	}{
		{"", "", true},
		{"", "qemu:///session", true},
		{"", qemu.URI, true},
		{"libvirt", "", true},
		{"qemu", "", true},
		{"libvirt", "qemu:///system", true},
		{"qemu", qemu.URI, true},
		{"qemu", "qemu:///system", false},
		{"libvirt", qemu.URI, false},
	}
	for _, tt := range tests {
		if got := DriverFits(tt.driver, tt.uri); got != tt.want {
			t.Errorf("DriverFits(%q, %q) = %v, want %v", tt.driver, tt.uri, got, tt.want)
		}
	}
}

func TestOpenRefusesDrivers(t *testing.T) {
	for want, opts := range map[ami.Code]Options{
		ami.CodeInvalidParameterValue:       {Driver: "xen"},
		ami.CodeInvalidParameterCombination: {Driver: "qemu", Connect: "qemu:///session"},
	} {
		opts.Home = t.TempDir()
		r, err := Open(t.Context(), opts)
		if err == nil {
			r.Close()
		}
		if got := ami.ErrorCode(err); got != want {
			t.Errorf("Open with the driver %s at %q: %v, want %s", opts.Driver, opts.Connect, err, want)
		}
	}
}

// TestRecordsChooseTheDriver holds that an address alone says whose it is.
func TestRecordsChooseTheDriver(t *testing.T) {
	opts := Options{Home: t.TempDir(), Name: DefaultRegion, Progress: ami.NoProgress}
	for uri, want := range map[string]string{qemu.URI: qemu.Name, "test:///default": "libvirt"} {
		for _, opts.Driver = range append(Drivers(), "") {
			d, err := opts.openDriver(context.Background(), uri)
			if err != nil {
				t.Fatal(err)
			}
			if d.Name() != want || d.URI() != uri {
				t.Errorf("with the driver %q, %s is opened by %s as %s, want %s", opts.Driver, uri, d.Name(), d.URI(), want)
			}
			d.Close()
		}
	}
	opts.Driver = qemu.Name
	d, err := opts.openDriver(context.Background(), "")
	if err != nil || d.Name() != qemu.Name {
		t.Errorf("the driver %s opens %v, %v", opts.Driver, d, err)
	}
	if got := renderingName(d); filepath.Ext(got) != ".argv" {
		t.Errorf("its commands are kept in %s", got)
	}
}

// TestCrashIsNoShutdown holds that a guest that died without its own will keeps
// all that it has, also where its end would be that of the instance.
func TestCrashIsNoShutdown(t *testing.T) {
	r, driver := open(t)
	id := launched(t, r, RunInstancesInput{Image: string(image(t, r, "web").ImageID), ShutdownBehavior: ami.ShutdownTerminate}).InstanceID
	driver.Pause(id, hypervisor.StateCrashed)
	inst, err := r.instance(t.Context(), id)
	must(t, err)
	if inst.State.Name != ami.InstanceStopped || inst.StateReason == nil || inst.StateReason.Code != "Server.InternalError" {
		t.Errorf("after a crash the instance is %s for %+v, want stopped for Server.InternalError", inst.State.Name, inst.StateReason)
	}
}
