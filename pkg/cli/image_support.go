package cli

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

// supportFlags say what the guests of an image know, and what their firmware brings.
type supportFlags struct {
	uefiData string
	ena      bool
}

func (s *supportFlags) add(c *cobra.Command, in *region.RegisterImageInput) {
	f := c.Flags()
	f.StringVar(&in.TpmSupport, "tpm-support", "", "`VERSION` v2.0 gives the image's guests a TPM; with the boot mode uefi")
	completeValues(c, "tpm-support", ami.TPMv2)
	f.StringVar(&s.uefiData, "uefi-data", "", "`TEXT` of UEFI's variables in base64, or @FILE or file://FILE with it, or with the variables of OVMF themselves")
	f.BoolVar(&in.SecureBoot, "secure-boot", false, "take the variables of the host's firmware that have Microsoft's keys: its guests boot with Secure Boot")
	f.BoolVar(&s.ena, "ena-support", false, "say that the image knows enhanced networking with ENA")
	f.StringVar(&in.SriovNetSupport, "sriov-net-support", "", "`KIND` simple says that the image knows enhanced networking with SR-IOV")
	completeValues(c, "sriov-net-support", ami.SriovSimple)
}

// read puts the flags that cannot be put there by themselves into in.
func (s *supportFlags) read(a *app, c *cobra.Command, in *region.RegisterImageInput) (err error) {
	if c.Flags().Changed("ena-support") {
		in.EnaSupport = &s.ena
	}
	in.UEFIData, err = a.uefiData(s.uefiData)
	return err
}

// maxUEFIFile bounds a file with UEFI's variables, in bytes.
const maxUEFIFile = 1 << 20

// uefiData reads UEFI's variables: base64, or a file that has that or a flash memory.
func (a *app) uefiData(s string) (string, error) {
	path, ok := strings.CutPrefix(s, "file://")
	if !ok {
		path, ok = strings.CutPrefix(s, "@")
	}
	if !ok {
		return s, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("the UEFI data cannot be read: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxUEFIFile))
	if err != nil {
		return "", fmt.Errorf("the UEFI data cannot be read: %w", err)
	}
	return region.UEFIText(b), nil
}

func (a *app) instanceUEFIData() *cobra.Command {
	return &cobra.Command{
		Use: "uefi-data INSTANCE", Short: "Show the UEFI variables of an instance", Args: args(1, 1), ValidArgsFunction: once(a.completeInstances),
		Long: `Show the UEFI variables of an instance that boots by UEFI, in the form that EC2's
GetInstanceUefiData has, which kami image register --uefi-data takes again. With
-o id it is the text alone.`,
		Example: "  kami instance uefi-data i-0123456789abcdef0 -o id",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				id, err := a.instanceID(c.Context(), r, given[0])
				if err != nil {
					return err
				}
				data, err := r.UEFIData(c.Context(), id)
				if err != nil {
					return err
				}
				type col = output.Column[ami.InstanceUEFIData]
				return output.List(a.printer(), data, []ami.InstanceUEFIData{data}, func(d ami.InstanceUEFIData) string { return d.UEFIData }, []col{
					{Title: "INSTANCE", Text: func(d ami.InstanceUEFIData) string { return string(d.InstanceID) }},
					{Title: "UEFI DATA", Text: func(d ami.InstanceUEFIData) string { return d.UEFIData }},
				})
			})
		},
	}
}
