package bundle

import "testing"

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"*.pem", "etc/x.pem", true},
		{"*.pem", "etc/x.pem/y", false},
		{"*id_rsa*", "home/u/my_id_rsa.pub", true},
		{"*.sw[op]", "a/.x.swp", true},
		{"*.sw[op]", "a/.x.swx", false},
		{"*.sw[!op]", "a/.x.swx", true},
		{"*.sw[a-o]", "x.swn", true},
		{"*/.ssh/authorized_keys", ".ssh/authorized_keys", true},
		{"*/.ssh/authorized_keys", "root/.ssh/authorized_keys", true},
		{"*/.*_history", "root/.bash_history", true},
		{"*/.*_history", "root/bash_history", false},
		{"/etc/shadow", "etc/shadow", true},
		{"etc/shadow", "etc/shadow", true},
		{"/etc/shadow", "srv/etc/shadow", false},
		{"/var/cache/*", "var/cache/apt/a/b", true},
		{"/var/cache/", "var/cache", true},
		{"?", "a", true},
		{"?", "ab", false},
		{"**a*b**", "xaxxbx", true},
		{"a*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false},
	} {
		p, err := parsePattern(c.pattern)
		must(t, err)
		if got := p.match(c.name); got != c.want {
			t.Errorf("%s of %s: got %v, want %v", c.pattern, c.name, got, c.want)
		}
	}
	for _, bad := range []string{"", "/", "a[b", "[]", "a[", "x\x00"} {
		if _, err := parsePattern(bad); err == nil {
			t.Errorf("%q was taken for a pattern", bad)
		}
	}
}

func TestPrivate(t *testing.T) {
	for name, c := range map[string]struct {
		head string
		want bool
	}{
		"empty":             {"", false},
		"certificate":       {"-----BEGIN CERTIFICATE-----\n", false},
		"key":               {"-----BEGIN RSA PRIVATE KEY-----\n", true},
		"key behind":        {"-----BEGIN CERTIFICATE-----\nx\n-----BEGIN PRIVATE KEY-----\n", true},
		"armoured secret":   {"-----BEGIN PGP PRIVATE KEY BLOCK-----", true},
		"public ring":       {"\x99\x02\x0d\x04", false},
		"public ring, new":  {"\xc6\x33\x04", false},
		"secret ring":       {"\x95\x03\x98\x04", true},
		"secret ring, new":  {"\xc5\x58\x04", true},
		"keybox":            {"\x00\x00\x00\x20\x01\x01\x00\x02KBXf\x00", false},
		"something unknown": {"hello", true},
	} {
		if got := private([]byte(c.head)); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}
