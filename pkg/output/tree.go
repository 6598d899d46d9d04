package output

import (
	"fmt"
	"html"
	"io"
	"strings"
)

// Node is one line of a tree: what it is called, what is said of it, and what
// hangs on it.
type Node struct {
	ID       string // unique in the tree, for DOT
	Label    string
	Note     string
	Children []Node
}

// Tree draws trees with lines, for a terminal.
func Tree(w io.Writer, roots []Node) error {
	for _, r := range roots {
		if err := drawNode(w, r, "", ""); err != nil {
			return err
		}
	}
	return nil
}

func drawNode(w io.Writer, n Node, first, rest string) error {
	if _, err := fmt.Fprintln(w, strings.TrimRight(first+clean(n.Label)+"  "+clean(n.Note), " ")); err != nil {
		return err
	}
	for i, c := range n.Children {
		branch, below := "├─ ", "│  "
		if i == len(n.Children)-1 {
			branch, below = "└─ ", "   "
		}
		if err := drawNode(w, c, rest+branch, rest+below); err != nil {
			return err
		}
	}
	return nil
}

// DOT writes trees in Graphviz's language.
func DOT(w io.Writer, name string, roots []Node) error {
	var b strings.Builder
	fmt.Fprintf(&b, "digraph %s {\n\trankdir=LR;\n\tnode [shape=box, fontname=\"sans-serif\"];\n", dotText(name))
	var walk func(n Node)
	walk = func(n Node) {
		fmt.Fprintf(&b, "\t%s [label=%s];\n", dotText(n.ID), dotText(n.Label+"\n"+n.Note))
		for _, c := range n.Children {
			fmt.Fprintf(&b, "\t%s -> %s;\n", dotText(n.ID), dotText(c.ID))
			walk(c)
		}
	}
	for _, r := range roots {
		walk(r)
	}
	b.WriteString("}\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func dotText(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(strings.TrimSpace(s)) + `"`
}

// The measures of SVG, in pixels.
const (
	svgLine   = 24
	svgIndent = 28
	svgMargin = 16
	svgWidth  = 960
)

// SVG draws trees as a picture: a line a node, children indented and joined.
func SVG(w io.Writer, roots []Node) error {
	var b strings.Builder
	rows := 0
	var walk func(n Node, depth, parent int)
	walk = func(n Node, depth, parent int) {
		row := rows
		rows++
		x, y := svgMargin+depth*svgIndent, svgMargin+row*svgLine+svgLine/2
		if parent >= 0 {
			px, py := x-svgIndent+6, svgMargin+parent*svgLine+svgLine/2+7
			fmt.Fprintf(&b, "<path d=\"M%d %dV%dH%d\" fill=\"none\" stroke=\"#888\"/>\n", px, py, y, x-4)
		}
		fmt.Fprintf(&b, "<text x=\"%d\" y=\"%d\">%s <tspan fill=\"#777\">%s</tspan></text>\n", x, y+5, html.EscapeString(clean(n.Label)), html.EscapeString(clean(n.Note)))
		for _, c := range n.Children {
			walk(c, depth+1, row)
		}
	}
	for _, r := range roots {
		walk(r, 0, -1)
	}
	_, err := fmt.Fprintf(w, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" font-size=\"14\">\n%s</svg>\n",
		svgWidth, 2*svgMargin+rows*svgLine, b.String())
	return err
}
