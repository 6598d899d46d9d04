package cli

import (
	"os"

	"github.com/kamivm/kami/pkg/ami"
)

// settleAccount settles on whose behalf the command asks.
func (a *app) settleAccount(conf config) error {
	for _, said := range []string{a.flags.account, os.Getenv("KAMI_ACCOUNT"), conf.Account, ami.DefaultAccount} {
		if said == "" {
			continue
		}
		if !ami.IsAccount(said) || said == ami.Builtin {
			return usageError{ami.Errorf(ami.CodeInvalidUserIDMalformed, "Invalid user id: %q", said).
				WithHint("An account is 12 digits, and not kami's own %s.", ami.Builtin)}
		}
		a.flags.account = said
		break
	}
	for arn, accounts := range conf.Organizations {
		if p, err := ami.ParseLaunchPermission(arn); err != nil || p.OrganizationARN+p.OrganizationalUnitARN == "" {
			return usagef("config.toml: %q in organizations is not the ARN of an organisation or of a unit of one", arn)
		}
		for _, account := range accounts {
			if !ami.IsAccount(account) {
				return usagef("config.toml: the account %q of %s does not have 12 digits", account, arn)
			}
		}
	}
	a.organizations = conf.Organizations
	return nil
}
