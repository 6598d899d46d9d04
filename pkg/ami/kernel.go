package ami

// The kinds of virtualization, EC2's. A guest that is paravirtual starts with a
// kernel instead of firmware and a boot loader, and has paravirtual devices alone.
const (
	VirtualizationHVM         = "hvm"
	VirtualizationParavirtual = "paravirtual"
)

// VirtualizationTypes lists them.
func VirtualizationTypes() []string {
	return []string{VirtualizationHVM, VirtualizationParavirtual}
}

// The kinds of images. Kernels and ramdisks are images without devices: their id
// is a KernelID's or RamdiskID's.
const (
	ImageTypeMachine = "machine"
	ImageTypeKernel  = "kernel"
	ImageTypeRamdisk = "ramdisk"
)

// PVGrub is the kernel that every region has: with it a guest starts what its own
// root says, as that is at each start.
const PVGrub KernelID = "aki-00000000000008664"

// Builtin owns what every region has; BuiltinAlias is its name.
const (
	Builtin      = "000000008664"
	BuiltinAlias = "kami"
)
