package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/digitalocean/go-qemu/qmp/raw"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/qmp"
	"github.com/kamivm/kami/pkg/machine"
)

const (
	// agentLimit bounds an answer that nobody should have to wait for.
	agentLimit = 2 * time.Second
	// thawAnswer bounds the answer of an agent that is asked to thaw.
	thawAnswer = 5 * time.Second
	// maxAnswer bounds an answer, in bytes: the guest is not trusted.
	maxAnswer = 1 << 20
)

// Freeze freezes the guest's file systems through its agent.
func (d *Driver) Freeze(ctx context.Context, id ami.InstanceID, limit time.Duration) (n int, err error) {
	return n, d.agentDo(ctx, id, limit, "guest-fsfreeze-freeze", nil, &n)
}

// Thaw undoes Freeze.
func (d *Driver) Thaw(ctx context.Context, id ami.InstanceID) error {
	return d.agentDo(ctx, id, thawAnswer, "guest-fsfreeze-thaw", nil, nil)
}

// Address asks the guest's agent; user networking has nobody else who knows. One
// that does not answer soon is as good as none.
func (d *Driver) Address(ctx context.Context, _ machine.Network, id ami.InstanceID) (string, error) {
	var ifaces []struct {
		Addresses []struct {
			Type    string `json:"ip-address-type"`
			Address string `json:"ip-address"`
		} `json:"ip-addresses"`
	}
	err := d.agentDo(ctx, id, agentLimit, "guest-network-get-interfaces", nil, &ifaces)
	if errors.Is(err, hypervisor.ErrNotRunning) || ctx.Err() != nil {
		return "", err
	}
	for _, iface := range ifaces {
		for _, a := range iface.Addresses {
			if ip := net.ParseIP(a.Address); a.Type == "ipv4" && ip != nil && !ip.IsLoopback() {
				return ip.String(), nil
			}
		}
	}
	return "", nil
}

// agentDo asks the guest's agent for something. Before that it is seen whether
// there is one that answers, within limit; ErrNoAgent says that there is not, and
// that nothing was asked. The answer then has limit once more.
func (d *Driver) agentDo(ctx context.Context, id ami.InstanceID, limit time.Duration, command string, args, answer any) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r := d.run(id)
	if err := r.agentListens(ctx); err != nil {
		return fmt.Errorf("%s: %w", id, err)
	}
	syncing, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	a, err := r.dialAgent(syncing)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%s: %w: %w", id, hypervisor.ErrNoAgent, err)
	}
	defer a.conn.Close()
	asking, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return a.ask(asking, command, args, answer)
}

// agentListens says by ErrNoAgent that no agent has opened the guest's end.
func (r runFolder) agentListens(ctx context.Context) error {
	m, err := r.talk(ctx, statusSock)
	if err != nil {
		return err
	}
	defer m.Close()
	all, err := raw.NewMonitor(m.Within(ctx)).QueryChardev()
	if err != nil {
		return err
	}
	for _, c := range all {
		if c.Label == "agent" && c.FrontendOpen {
			return nil
		}
	}
	return fmt.Errorf("%w: none has opened its channel", hypervisor.ErrNoAgent)
}

// agent is a conversation with a guest's agent.
type agent struct {
	conn net.Conn
	in   *bufio.Reader
}

// dialAgent connects to the agent and reads on to where it answers this
// conversation: what it was asked in an earlier one may be answered only now.
func (r runFolder) dialAgent(ctx context.Context) (*agent, error) {
	conn, err := dial(ctx, r.path(agentSock))
	if err != nil {
		return nil, err
	}
	a := &agent{conn, bufio.NewReader(conn)}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	id := rand.Int64N(1 << 52)
	// The byte ends what may stand half written before it.
	_, err = fmt.Fprintf(conn, "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%d}}\n", id)
	for err == nil {
		var line []byte
		var said struct {
			Return json.Number `json:"return"`
		}
		if line, err = a.readAnswer(); err == nil && json.Unmarshal(line, &said) == nil && said.Return.String() == strconv.FormatInt(id, 10) {
			return a, nil
		}
	}
	conn.Close()
	return nil, err
}

// ask sends one command and reads what the agent returns into answer, nil for
// nothing.
func (a *agent) ask(ctx context.Context, command string, args, answer any) error {
	stop := context.AfterFunc(ctx, func() { a.conn.Close() })
	defer stop()
	text, err := json.Marshal(struct {
		Execute string `json:"execute"`
		Args    any    `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return err
	}
	said := struct {
		Return any        `json:"return"`
		Error  *qmp.Error `json:"error"`
	}{Return: answer}
	if _, err = a.conn.Write(append(text, '\n')); err == nil {
		var line []byte
		if line, err = a.readAnswer(); err == nil {
			err = json.Unmarshal(line, &said)
		}
	}
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case err == nil && said.Error != nil:
		err = said.Error
	case err == nil:
		return nil
	}
	return fmt.Errorf("asking the guest's agent for %s: %w", command, err)
}

// readAnswer reads a line. What stands before the mark of a synchronised answer
// is of an earlier conversation.
func (a *agent) readAnswer() ([]byte, error) {
	var line []byte
	for {
		b, err := a.in.ReadByte()
		if err != nil {
			return nil, err
		}
		switch {
		case b == 0xff:
			line = line[:0]
		case b == '\n' && strings.TrimSpace(string(line)) != "":
			return line, nil
		case len(line) >= maxAnswer:
			return nil, fmt.Errorf("an answer of more than %d bytes", maxAnswer)
		default:
			line = append(line, b)
		}
	}
}
