package ami

import (
	"errors"
	"fmt"
	"strings"
)

// Code is one of Amazon EC2's published error codes. Programs branch on it;
// people read the message.
type Code string

// The codes that kami emits: of EC2's published list, KMS's for its keys, and
// those of the recycle bin for its rules.
const (
	CodeConcurrentSnapshotLimitExceeded Code = "ConcurrentSnapshotLimitExceeded"
	CodeInvalidAMIIDMalformed           Code = "InvalidAMIID.Malformed"
	CodeInvalidAMIIDNotFound            Code = "InvalidAMIID.NotFound"
	CodeInvalidAMIIDUnavailable         Code = "InvalidAMIID.Unavailable"
	CodeInvalidAMIAttributeItemValue    Code = "InvalidAMIAttributeItemValue"
	CodeInvalidAMINameDuplicate         Code = "InvalidAMIName.Duplicate"
	CodeInvalidAMINameMalformed         Code = "InvalidAMIName.Malformed"
	CodeInvalidBlockDeviceMapping       Code = "InvalidBlockDeviceMapping"
	CodeInvalidManifest                 Code = "InvalidManifest"
	CodeInvalidBundleIDNotFound         Code = "InvalidBundleID.NotFound"
	CodeBundlingInProgress              Code = "BundlingInProgress"
	CodeInvalidSnapshotInUse            Code = "InvalidSnapshot.InUse"
	CodeInvalidSnapshotNotFound         Code = "InvalidSnapshot.NotFound"
	CodeInvalidSnapshotIDMalformed      Code = "InvalidSnapshotID.Malformed"
	CodeInvalidInstanceIDNotFound       Code = "InvalidInstanceID.NotFound"
	CodeInvalidInstanceIDMalformed      Code = "InvalidInstanceID.Malformed"
	CodeIncorrectInstanceState          Code = "IncorrectInstanceState"
	CodeIncorrectState                  Code = "IncorrectState"
	CodeNonEBSInstance                  Code = "NonEBSInstance"
	CodeSnapshotLimitExceeded           Code = "SnapshotLimitExceeded"
	CodeUnauthorizedOperation           Code = "UnauthorizedOperation"
	CodeUnsupportedOperation            Code = "UnsupportedOperation"
	CodeInvalidVolumeNotFound           Code = "InvalidVolume.NotFound"
	CodeInvalidVolumeIDMalformed        Code = "InvalidVolumeID.Malformed"
	CodeVolumeInUse                     Code = "VolumeInUse"
	CodeInvalidKernelIDMalformed        Code = "InvalidKernelId.Malformed"
	CodeInvalidRAMDiskIDMalformed       Code = "InvalidRamDiskId.Malformed"
	CodeDependencyViolation             Code = "DependencyViolation"
	CodeInvalidKeyPairNotFound          Code = "InvalidKeyPair.NotFound"
	CodeInvalidKeyPairDuplicate         Code = "InvalidKeyPair.Duplicate"
	CodeInvalidKeyFormat                Code = "InvalidKey.Format"
	CodeInvalidParameterValue           Code = "InvalidParameterValue"
	CodeInvalidParameterCombination     Code = "InvalidParameterCombination"
	CodeMissingParameter                Code = "MissingParameter"
	CodeInvalidFilter                   Code = "InvalidFilter"
	CodeInvalidNextToken                Code = "InvalidNextToken"
	CodeInvalidUserIDMalformed          Code = "InvalidUserID.Malformed"
	CodeOperationNotPermitted           Code = "OperationNotPermitted"
	CodeAuthFailure                     Code = "AuthFailure"
	CodeOptInRequired                   Code = "OptInRequired"
	CodeDryRunOperation                 Code = "DryRunOperation"
	CodeInsufficientInstanceCapacity    Code = "InsufficientInstanceCapacity"
	CodeInvalidTagKeyMalformed          Code = "InvalidTagKey.Malformed"
	CodeTagLimitExceeded                Code = "TagLimitExceeded"
	CodeResourceLimitExceeded           Code = "ResourceLimitExceeded"
	CodeIdempotentParameterMismatch     Code = "IdempotentParameterMismatch"
	CodeInvalidParameterDependency      Code = "InvalidParameterDependency"
	CodeInvalidKMSKeyState              Code = "InvalidKMSKey.InvalidState"
	CodeKMSNotFound                     Code = "NotFoundException"
	CodeKMSAlreadyExists                Code = "AlreadyExistsException"
	CodeRuleNotFound                    Code = "ResourceNotFoundException"
	CodeRuleConflict                    Code = "ConflictException"
	CodeInternalError                   Code = "InternalError"
)

// Error is what every region operation returns when it fails: EC2's code, a
// whole sentence for a person, what to do about it, and the cause.
type Error struct {
	Code    Code
	Message string // a whole sentence
	Hint    string // what to do next: a sentence or a command; may be empty
	Err     error  // the cause; may be nil
}

func (e *Error) Error() string {
	s := string(e.Code) + ": " + e.Message
	if e.Err != nil && e.Err.Error() != "" {
		s = strings.TrimSuffix(s, ".") + ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error with a code and a formatted sentence. A %w verb in
// format is kept as the cause for errors.Is, and its text is in the message.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	e := &Error{Code: code, Message: err.Error()}
	if errors.Unwrap(err) != nil {
		e.Err = silent{errors.Unwrap(err)}
	}
	return e
}

// WithHint returns e with its hint set.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// ErrorCode returns the code that err carries, or CodeInternalError when it
// carries none, or "" when err is nil.
func ErrorCode(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternalError
}

// silent keeps a cause for errors.Is whose text the message already has.
type silent struct{ error }

func (s silent) Error() string { return "" }
func (s silent) Unwrap() error { return s.error }
