package qmp

import (
	"encoding/json"
	"fmt"

	"github.com/digitalocean/go-qemu/qmp"
)

// Error is what QEMU refuses, in its own words.
type Error struct {
	Class string `json:"class"` // GenericError, DeviceNotFound, CommandNotFound and few more
	Desc  string `json:"desc"`
}

func (e *Error) Error() string { return e.Desc }

// The classes of errors that are told apart.
const (
	ClassDeviceNotFound  = "DeviceNotFound"
	ClassCommandNotFound = "CommandNotFound"
)

// refusal is the error in an answer of QEMU's, nil where it has none.
func refusal(answer []byte) error {
	var failed struct {
		Error *Error `json:"error"`
	}
	if err := json.Unmarshal(answer, &failed); err != nil {
		return fmt.Errorf("reading QEMU's answer: %w", err)
	}
	if failed.Error != nil {
		return failed.Error
	}
	return nil
}

// Answer returns the text of an answer of QEMU's, or the *Error that it is. It is
// for transports whose answers come as text.
func Answer(text string) ([]byte, error) {
	if err := refusal([]byte(text)); err != nil {
		return nil, err
	}
	return []byte(text), nil
}

// Ask sends one command and reads what QEMU returns into answer, nil for nothing.
// It is for commands that go-qemu has no typed call for, or one of an older QEMU.
func Ask(m qmp.Monitor, command string, args, answer any) error {
	text, err := json.Marshal(qmp.Command{Execute: command, Args: args})
	if err != nil {
		return err
	}
	if text, err = m.Run(text); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(text, &struct {
		Return any `json:"return"`
	}{answer}); err != nil {
		return fmt.Errorf("reading QEMU's answer to %s: %w", command, err)
	}
	return nil
}
