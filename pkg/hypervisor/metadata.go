package hypervisor

// MetadataRunner is a driver that can run a program for a guest: the one in
// machine.Network.Metadata, for each connection of the guest's to
// MetadataAddress. It does so with user networking alone, and the guest's
// network is then the one that these addresses say.
type MetadataRunner interface {
	// RunsMetadata says whether guests of this driver can have it.
	RunsMetadata() bool
}

// The user networking of a guest that reaches the metadata service: its network
// is the link-local one, for nothing else would be asked for that address.
const (
	MetadataAddress = "169.254.169.254" // port 80
	MetadataNetwork = "169.254.0.0/16"
	MetadataHost    = "169.254.0.2"   // the way out
	MetadataDNS     = "169.254.0.3"   // the host's name server
	MetadataGuest   = "169.254.10.15" // what the guest gets by DHCP
)

// RunsMetadata says whether driver can run a program for a guest.
func RunsMetadata(driver Driver) bool {
	m, ok := driver.(MetadataRunner)
	return ok && m.RunsMetadata()
}
