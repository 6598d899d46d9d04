package ami

import (
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

var imageName = regexp.MustCompile(`^[A-Za-z0-9()\[\] ./\-'@_]{3,128}$`)

// CheckName checks the form of an image's name. It returns
// InvalidAMIName.Malformed.
func CheckName(name string) error {
	if imageName.MatchString(name) {
		return nil
	}
	return Errorf(CodeInvalidAMINameMalformed, "AMI names must be between 3 and 128 characters long, and may contain letters, numbers, '(', ')', '.', '-', '/', '_', '[', ']', '@', single quotes and spaces: %q is not.", name)
}

// ParseTag reads a tag as KEY=VALUE, or as the AWS CLI's Key=K,Value=V.
func ParseTag(s string) (Tag, error) {
	if rest, ok := strings.CutPrefix(s, "Key="); ok {
		if k, v, ok := strings.Cut(rest, ",Value="); ok {
			return Tag{k, v}, ValidateTags([]Tag{{k, v}})
		}
	}
	k, v, ok := strings.Cut(s, "=")
	if !ok {
		return Tag{}, Errorf(CodeInvalidParameterValue, "The tag %q has no =.", s).WithHint("Give tags as key=value.")
	}
	return Tag{k, v}, ValidateTags([]Tag{{k, v}})
}

// ValidateTags checks tags as EC2 does: at most 50, keys of 1 to 127 characters
// without the prefix aws:, values of at most 255.
func ValidateTags(tags []Tag) error {
	if len(tags) > 50 {
		return Errorf(CodeTagLimitExceeded, "There are %d tags; at most 50 are allowed.", len(tags))
	}
	var faults []string
	for _, t := range tags {
		switch {
		case t.Key == "" || utf8.RuneCountInString(t.Key) > 127:
			faults = append(faults, fmt.Sprintf("the key %q does not have 1 to 127 characters", t.Key))
		case strings.HasPrefix(t.Key, "aws:"):
			faults = append(faults, fmt.Sprintf("the key %q begins with aws:, which is reserved", t.Key))
		case utf8.RuneCountInString(t.Value) > 255:
			faults = append(faults, fmt.Sprintf("the value of %q has more than 255 characters", t.Key))
		}
	}
	if len(faults) > 0 {
		return Errorf(CodeInvalidTagKeyMalformed, "The tags are not valid: %s.", strings.Join(faults, "; "))
	}
	return nil
}
