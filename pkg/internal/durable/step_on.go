//go:build kamicrash

package durable

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

var (
	mu    sync.Mutex
	count = map[string]int{}
)

// Step kills the process, as kill -9 does, at the step that KAMI_CRASH_AT names
// (NAME, or NAME#N for its Nth time). With KAMI_CRASH_LIST every step that is
// reached is noted in that file.
func Step(name string) {
	mu.Lock()
	defer mu.Unlock()
	count[name]++
	if list := os.Getenv("KAMI_CRASH_LIST"); list != "" {
		if f, err := os.OpenFile(list, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600); err == nil {
			fmt.Fprintf(f, "%s#%d\n", name, count[name])
			f.Close()
		}
	}
	at, nth, found := strings.Cut(os.Getenv("KAMI_CRASH_AT"), "#")
	n, err := strconv.Atoi(nth)
	if !found || err != nil {
		n = 1
	}
	if at == name && count[name] == n {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
