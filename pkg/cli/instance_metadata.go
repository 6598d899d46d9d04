package cli

import (
	"context"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/imds"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

// fact is one of an instance's metadata.
type fact struct {
	Path  string `json:"Path"`
	Value string `json:"Value"`
}

func factsDoc(all []fact) any { return map[string]any{"Metadata": nonNil(all)} }

func metadataOptionsDoc(id ami.InstanceID, o ami.MetadataOptions) any {
	return map[string]any{"InstanceId": id, "InstanceMetadataOptions": o}
}

func (a *app) instanceMetadata() *cobra.Command {
	var o ami.MetadataOptions
	var userData string
	var dry bool
	c := &cobra.Command{
		Use: "metadata INSTANCE [PATH]", Short: "Show the metadata of an instance, or change how they are served", Args: args(1, 2), ValidArgsFunction: once(a.completeInstances),
		Long: `Show what the metadata service tells the guest: all facts with their paths, or
with PATH (meta-data/instance-id, or meta-data/ for a list) one as it is.

With a flag, change how the service answers, from the guest's next request on, or
the user data of a stopped instance.`,
		Example: "  kami instance metadata i-0123456789abcdef0\n  kami instance metadata i-0123456789abcdef0 meta-data/public-keys/0/openssh-key\n  kami instance metadata i-0123456789abcdef0 --http-tokens required\n  kami instance metadata i-0123456789abcdef0 --user-data @setup.sh",
		RunE: func(c *cobra.Command, given []string) error {
			change, data := o != ami.MetadataOptions{}, c.Flags().Changed("user-data")
			if (change || data) && len(given) > 1 {
				return usagef("a path is shown, not changed; %s", seeHelp(c))
			}
			if change && data {
				return usagef("change the options or the user data, one at a time; %s", seeHelp(c))
			}
			return a.with(c.Context(), func(r *region.Region) error {
				id, err := a.instanceID(c.Context(), r, given[0])
				switch {
				case err != nil:
					return err
				case change:
					return a.changeMetadata(c.Context(), r, region.ModifyMetadataOptionsInput{InstanceID: id, Options: o, DryRun: dry})
				case data:
					text, err := a.userData(userData)
					if err != nil {
						return err
					}
					return r.ModifyUserData(c.Context(), id, text, dry)
				case len(given) > 1:
					return a.showFact(c.Context(), r, id, given[1])
				}
				return a.showMetadata(c.Context(), r, id)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&o.HTTPTokens, "http-tokens", "", "`WHETHER` requests need a token: optional or required")
	f.IntVar(&o.HopLimit, "http-put-response-hop-limit", 0, "`N` hops that a token may travel, 1 to 64; kept, and without effect")
	f.StringVar(&o.HTTPEndpoint, "http-endpoint", "", "`WHETHER` there are answers: enabled or disabled")
	f.StringVar(&o.InstanceTags, "instance-metadata-tags", "", "`WHETHER` the instance's tags are among them: enabled or disabled")
	f.StringVar(&userData, "user-data", "", "`TEXT` for a stopped instance, or @FILE, file://FILE or - for standard input; at most 16 KiB")
	completeValues(c, "http-tokens", ami.TokensOptional, ami.TokensRequired)
	completeValues(c, "http-endpoint", ami.Enabled, ami.Disabled)
	completeValues(c, "instance-metadata-tags", ami.Enabled, ami.Disabled)
	must(c.RegisterFlagCompletionFunc("http-put-response-hop-limit", cobra.NoFileCompletions))
	dryFlag(c, &dry)
	return c
}

func (a *app) changeMetadata(ctx context.Context, r *region.Region, in region.ModifyMetadataOptionsInput) error {
	now, err := r.ModifyInstanceMetadataOptions(ctx, in)
	if err != nil {
		return err
	}
	type col = output.Column[ami.MetadataOptions]
	return output.List(a.printer(), metadataOptionsDoc(in.InstanceID, now), []ami.MetadataOptions{now}, func(ami.MetadataOptions) string { return string(in.InstanceID) }, []col{
		{Title: "INSTANCE", Text: func(ami.MetadataOptions) string { return string(in.InstanceID) }},
		{Title: "TOKENS", Text: func(o ami.MetadataOptions) string { return o.HTTPTokens }},
		{Title: "HOPS", Text: func(o ami.MetadataOptions) string { return strconv.Itoa(o.HopLimit) }},
		{Title: "ENDPOINT", Text: func(o ami.MetadataOptions) string { return o.HTTPEndpoint }},
		{Title: "TAGS", Text: func(o ami.MetadataOptions) string { return o.InstanceTags }},
	})
}

// metadata reads what a guest is told, and says where it is not told so.
func (a *app) metadata(ctx context.Context, r *region.Region, id ami.InstanceID) (ami.Metadata, error) {
	md, err := r.Metadata(ctx, id)
	if err != nil || a.progress == nil {
		return md, err
	}
	switch {
	case md.Options.HTTPEndpoint == ami.Disabled:
		a.progress.Note("the metadata service of %s is disabled: its guest is told nothing of this", id)
	case md.PrivateIP == "":
		a.progress.Note("no metadata service reaches the guest of %s; what is in its seed it was told", id)
	}
	return md, nil
}

func (a *app) showMetadata(ctx context.Context, r *region.Region, id ami.InstanceID) error {
	md, err := a.metadata(ctx, r, id)
	if err != nil {
		return err
	}
	var all []fact
	for _, path := range imds.Paths(md) {
		text, _ := imds.Lookup(md, latest(path))
		all = append(all, fact{path, string(text)})
	}
	p := a.printer()
	most := math.MaxInt
	if output.IsTerminal(p.Out) { // where a signature of many lines hides the rest
		most = 100
	}
	type col = output.Column[fact]
	return output.List(p, factsDoc(all), all, func(f fact) string { return f.Path }, []col{
		{Title: "PATH", Text: func(f fact) string { return f.Path }},
		{Title: "VALUE", Text: func(f fact) string { return shorten(f.Value, most) }},
	})
}

// shorten cuts a text to so many characters.
func shorten(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}

func (a *app) showFact(ctx context.Context, r *region.Region, id ami.InstanceID, path string) error {
	md, err := a.metadata(ctx, r, id)
	if err != nil {
		return err
	}
	text, ok := imds.Lookup(md, latest(path))
	if !ok {
		return ami.Errorf(ami.CodeInvalidParameterValue, "The metadata of %s have no %q.", id, path).
			WithHint("kami instance metadata %s shows what there is.", id)
	}
	out := a.printer().Out
	if output.IsTerminal(out) && len(text) > 0 && text[len(text)-1] != '\n' {
		text = append(text, '\n')
	}
	_, err = out.Write(text)
	return err
}

// latest is a path as a guest asks for it.
func latest(path string) string {
	if strings.HasPrefix(path, "/") {
		return path
	}
	return "/latest/" + path
}
