package ami

import (
	"encoding/hex"
	"regexp"
	"strings"

	"github.com/google/uuid"
)

// Ids are a prefix that names the noun and 17 hexadecimal digits, as EC2's.
type (
	ImageID       string // ami-…
	SnapshotID    string // snap-…
	VolumeID      string // vol-…
	InstanceID    string // i-…
	ReservationID string // r-…
	KeyPairID     string // key-…
	KernelID      string // aki-…
	RamdiskID     string // ari-…
)

// NewImageID returns a fresh random id.
func NewImageID() ImageID { return ImageID(newID("ami-")) }

// NewSnapshotID returns a fresh random id.
func NewSnapshotID() SnapshotID { return SnapshotID(newID("snap-")) }

// NewVolumeID returns a fresh random id.
func NewVolumeID() VolumeID { return VolumeID(newID("vol-")) }

// NewInstanceID returns a fresh random id.
func NewInstanceID() InstanceID { return InstanceID(newID("i-")) }

// NewReservationID returns a fresh random id.
func NewReservationID() ReservationID { return ReservationID(newID("r-")) }

// NewKeyPairID returns a fresh random id.
func NewKeyPairID() KeyPairID { return KeyPairID(newID("key-")) }

// NewKernelID returns a fresh random id.
func NewKernelID() KernelID { return KernelID(newID("aki-")) }

// NewRamdiskID returns a fresh random id.
func NewRamdiskID() RamdiskID { return RamdiskID(newID("ari-")) }

// newID takes the random bits of two version 4 UUIDs' worth of entropy where
// one would do: the version and variant nibbles are cut away with the tail.
func newID(prefix string) string {
	u := uuid.New()
	// Bytes 6 and 8 of a version 4 UUID carry fixed bits; leave both out.
	b := append(append(append([]byte{}, u[:6]...), u[7]), u[9:]...)
	return prefix + hex.EncodeToString(b)[:17]
}

var idDigits = regexp.MustCompile(`^(?:[0-9a-f]{8}|[0-9a-f]{17})$`)

// ParseImageID checks the form of s. It returns InvalidAMIID.Malformed.
func ParseImageID(s string) (ImageID, error) {
	return parseID[ImageID](s, "ami-", CodeInvalidAMIIDMalformed)
}

// ParseSnapshotID checks the form of s. It returns InvalidSnapshotID.Malformed.
func ParseSnapshotID(s string) (SnapshotID, error) {
	return parseID[SnapshotID](s, "snap-", CodeInvalidSnapshotIDMalformed)
}

// ParseVolumeID checks the form of s. It returns InvalidVolumeID.Malformed.
func ParseVolumeID(s string) (VolumeID, error) {
	return parseID[VolumeID](s, "vol-", CodeInvalidVolumeIDMalformed)
}

// ParseInstanceID checks the form of s. It returns InvalidInstanceID.Malformed.
func ParseInstanceID(s string) (InstanceID, error) {
	return parseID[InstanceID](s, "i-", CodeInvalidInstanceIDMalformed)
}

// ParseKernelID checks the form of s. It returns InvalidKernelId.Malformed.
func ParseKernelID(s string) (KernelID, error) {
	return parseID[KernelID](s, "aki-", CodeInvalidKernelIDMalformed)
}

// ParseRamdiskID checks the form of s. It returns InvalidRamDiskId.Malformed.
func ParseRamdiskID(s string) (RamdiskID, error) {
	return parseID[RamdiskID](s, "ari-", CodeInvalidRAMDiskIDMalformed)
}

func parseID[T ~string](s, prefix string, code Code) (T, error) {
	digits, ok := strings.CutPrefix(s, prefix)
	if !ok || !idDigits.MatchString(digits) {
		return "", Errorf(code, "Invalid id: %q (expecting %q).", s, prefix+"…")
	}
	return T(s), nil
}
