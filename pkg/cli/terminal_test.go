package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// onTerminal runs the command line with a terminal as its output and returns
// what the terminal shows.
func onTerminal(t *testing.T, args ...string) string {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprint("/dev/pts/", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	shown := make(chan string)
	go func() { // beside the writer, who would wait when the terminal is full
		b, _ := io.ReadAll(master) // it ends with EIO when the terminal is closed
		shown <- strings.ReplaceAll(string(b), "\r\n", "\n")
	}()
	var stderr bytes.Buffer
	status := Main(args, strings.NewReader(""), tty, &stderr)
	tty.Close()
	screen := <-shown
	if status != exitOK {
		t.Fatalf("kami %s: exit status %d\n%s", strings.Join(args, " "), status, &stderr)
	}
	return screen
}

// TestTablesOnATerminal: a person sees a header, and every cell stands under its
// title.
func TestTablesOnATerminal(t *testing.T) {
	o := furnish(t)
	mustKami(t, "image", "register", "--name", "a-much-longer-name", "--block-device-mapping", "/dev/sda1="+o.snapshot)
	for _, c := range []struct {
		args   string
		titles []string
		rows   int
	}{
		{"image list", []string{"IMAGE", "NAME", "STATE", "ARCH", "SIZE", "BOOT", "ROOT", "CONSISTENCY", "CREATED"}, 2},
		{"instance list", []string{"INSTANCE", "NAME", "STATE", "IMAGE", "TYPE", "ACCEL", "ADDRESS", "LAUNCHED"}, 0},
		{"volume list", []string{"VOLUME", "STATE", "SIZE", "SNAPSHOT", "INSTANCE", "DEVICE", "CREATED", "ENCRYPTED"}, 2},
		{"snapshot list", []string{"SNAPSHOT", "STATE", "SIZE", "ON DISK", "LAYER", "CONSISTENCY", "VOLUME", "STARTED", "ENCRYPTED"}, 1},
		{"key list", []string{"NAME", "ID", "TYPE", "FINGERPRINT"}, 1},
		{"region list", []string{"REGION", "IMAGES", "INSTANCES", "PATH"}, 2},
		{"store du", []string{"IMAGE", "NAME", "VIRTUAL", "ON DISK", "UNIQUE", "SHARED", "FREED"}, 3}, // the last is the sum
		{"store verify", []string{"LAYER", "RESULT", "IMAGES"}, 1},
	} {
		lines := strings.Split(strings.TrimRight(onTerminal(t, strings.Fields(c.args)...), "\n"), "\n")
		if got := len(lines) - 1; got != c.rows {
			t.Errorf("kami %s: got %d rows, want %d:\n%s", c.args, got, c.rows, strings.Join(lines, "\n"))
		}
		if got := strings.Join(strings.Fields(lines[0]), " "); got != strings.Join(c.titles, " ") {
			t.Errorf("kami %s: got the titles %q, want %q", c.args, got, c.titles)
			continue
		}
		for _, line := range lines[1:] {
			if strings.HasPrefix(line, "All layers take ") {
				continue
			}
			for _, title := range c.titles {
				if at := column(lines[0], title); at > 0 && (len(line) <= at || line[at-1] != ' ' || line[at] == ' ') {
					t.Errorf("kami %s: nothing begins under %s in %q", c.args, title, line)
				}
			}
		}
	}
}

// column is where a title stands in a header.
func column(header, title string) int {
	i := strings.Index(" "+header+" ", " "+title+" ")
	return utf8.RuneCountInString(header[:max(i, 0)])
}
