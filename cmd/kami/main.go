// Command kami makes, launches and keeps machine images.
package main

import (
	"os"

	"github.com/kamivm/kami/pkg/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
