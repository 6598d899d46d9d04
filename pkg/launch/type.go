package launch

import (
	"strings"

	"github.com/kamivm/kami/pkg/ami"
)

// DefaultType is the instance type of a launch that names none.
const DefaultType = "t3.micro"

// Size is what an instance type stands for.
type Size struct {
	Name      string
	CPUs      int
	MemoryMiB int64
}

// families are EC2's, each by the MiB of memory for a vCPU of its large sizes.
// The burstable ones have their own small sizes.
func families() map[string]int64 {
	return map[string]int64{
		"t2": 4 << 10, "t3": 4 << 10, "t3a": 4 << 10,
		"m5": 4 << 10, "m5a": 4 << 10, "m6i": 4 << 10, "m6a": 4 << 10, "m7i": 4 << 10, "m7a": 4 << 10,
		"c5": 2 << 10, "c5a": 2 << 10, "c6i": 2 << 10, "c6a": 2 << 10, "c7i": 2 << 10, "c7a": 2 << 10,
		"t4g": 4 << 10, "m6g": 4 << 10, "m7g": 4 << 10, "c6g": 2 << 10, "c7g": 2 << 10, "r6g": 8 << 10, "r7g": 8 << 10,
		"r5": 8 << 10, "r5a": 8 << 10, "r6i": 8 << 10, "r6a": 8 << 10, "r7i": 8 << 10, "r7a": 8 << 10,
	}
}

// DefaultTypeFor is the instance type of a launch that names none, of an image of an
// architecture.
func DefaultTypeFor(arch ami.Architecture) string {
	if arch == ami.ArchARM64 {
		return "t4g.micro"
	}
	return DefaultType
}

// CheckType returns InvalidParameterValue, as EC2 does, for an instance type that has
// processors of another architecture.
func CheckType(name string, arch ami.Architecture) error {
	family, _, _ := strings.Cut(name, ".")
	arm := strings.HasSuffix(family, "g")
	if arm == (arch == ami.ArchARM64) {
		return nil
	}
	has := ami.ArchX8664
	if arm {
		has = ami.ArchARM64
	}
	return ami.Errorf(ami.CodeInvalidParameterValue, "The architecture '%s' of the specified instance type does not match the architecture '%s' of the specified AMI. Specify an instance type and an AMI that have matching architectures, and try again.", has, arch).
		WithHint("arm64 images take types such as t4g.micro, m7g.large or c7g.xlarge; others take those without the g.")
}

// Type returns what an EC2 instance type stands for; "" is DefaultType. It
// returns InvalidParameterValue for one that is not known.
func Type(name string) (Size, error) {
	if name == "" {
		name = DefaultType
	}
	family, size, _ := strings.Cut(name, ".")
	perCPU, ok := families()[family]
	if !ok {
		return Size{}, unknownType(name)
	}
	if strings.HasPrefix(family, "t") {
		small := map[string]Size{
			"nano": {name, 2, 512}, "micro": {name, 2, 1 << 10}, "small": {name, 2, 2 << 10},
			"medium": {name, 2, 4 << 10}, "large": {name, 2, 8 << 10}, "xlarge": {name, 4, 16 << 10}, "2xlarge": {name, 8, 32 << 10},
		}
		s, ok := small[size]
		if !ok {
			return Size{}, unknownType(name)
		}
		if family == "t2" && s.MemoryMiB <= 2<<10 {
			s.CPUs = 1
		}
		return s, nil
	}
	cpus := map[string]int{
		"large": 2, "xlarge": 4, "2xlarge": 8, "4xlarge": 16, "8xlarge": 32, "12xlarge": 48, "16xlarge": 64, "24xlarge": 96,
	}[size]
	if cpus == 0 {
		return Size{}, unknownType(name)
	}
	return Size{name, cpus, int64(cpus) * perCPU}, nil
}

func unknownType(name string) error {
	return ami.Errorf(ami.CodeInvalidParameterValue, "Invalid value '%s' for InstanceType.", name).
		WithHint("Use a type such as t3.nano, t3.micro, m5.large, c6i.xlarge or r7i.2xlarge, and --cpus and --memory for a size of your own.")
}

// TypeNames returns every known type, for completion.
func TypeNames() []string {
	var out []string
	for family := range families() {
		for _, size := range []string{"nano", "micro", "small", "medium", "large", "xlarge", "2xlarge", "4xlarge", "8xlarge", "12xlarge", "16xlarge", "24xlarge"} {
			if _, err := Type(family + "." + size); err == nil {
				out = append(out, family+"."+size)
			}
		}
	}
	return out
}
