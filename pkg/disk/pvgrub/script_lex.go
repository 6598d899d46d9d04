package pvgrub

import (
	"fmt"
	"strings"
)

// fragment is a part of a word: text as it is, or the name of a variable whose
// value takes its place. Quoted values are not split at spaces.
type fragment struct {
	text             string
	variable, quoted bool
}

type word []fragment

// literal is a word that is nothing but unquoted text; such words may be
// reserved ones.
func (w word) literal() string {
	if len(w) != 1 || w[0].variable || w[0].quoted {
		return ""
	}
	return w[0].text
}

// token is a word, or one of the characters that end words: ; { }. A line's end
// is a semicolon too.
type token struct {
	mark byte // 0 for a word
	word word
}

// lexer splits GRUB 2's script language into tokens. It is like a shell's, with
// fewer ways to say things.
type lexer struct {
	text string
	at   int
}

const wordEnds = " \t\r\n;{}"

// next is the next token; false at the end.
func (l *lexer) next() (token, bool) {
	for l.at < len(l.text) {
		switch c := l.text[l.at]; {
		case strings.HasPrefix(l.text[l.at:], "\\\n"):
			l.at += 2
		case c == ' ' || c == '\t' || c == '\r':
			l.at++
		case c == '#':
			if end := strings.IndexByte(l.text[l.at:], '\n'); end >= 0 {
				l.at += end
			} else {
				l.at = len(l.text)
			}
		case c == '\n':
			l.at++
			return token{mark: ';'}, true
		case strings.IndexByte(wordEnds, c) >= 0:
			l.at++
			return token{mark: c}, true
		default:
			return token{word: l.word()}, true
		}
	}
	return token{}, false
}

func (l *lexer) word() word {
	var w word
	var plain strings.Builder
	flush := func() {
		if plain.Len() > 0 {
			w = append(w, fragment{text: plain.String()})
			plain.Reset()
		}
	}
	for l.at < len(l.text) && strings.IndexByte(wordEnds, l.text[l.at]) < 0 {
		switch c := l.text[l.at]; c {
		case '\\':
			l.at++
			if l.at < len(l.text) {
				if l.text[l.at] != '\n' {
					plain.WriteByte(l.text[l.at])
				}
				l.at++
			}
		case '\'':
			flush()
			w = append(w, fragment{text: l.until('\''), quoted: true})
		case '"':
			flush()
			w = l.quoted(w)
		case '$':
			if name := l.variable(); name != "" {
				flush()
				w = append(w, fragment{text: name, variable: true})
			} else if l.at >= len(l.text) || l.text[l.at] != '"' {
				plain.WriteByte('$')
			}
		default:
			plain.WriteByte(c)
			l.at++
		}
	}
	flush()
	return w
}

// until takes what stands up to the next end, which is where the lexer is too.
func (l *lexer) until(end byte) string {
	start := l.at + 1
	n := strings.IndexByte(l.text[start:], end)
	if n < 0 {
		n = len(l.text) - start
		l.at = len(l.text)
	} else {
		l.at = start + n + 1
	}
	return l.text[start : start+n]
}

// quoted takes what stands between double quotes.
func (l *lexer) quoted(w word) word {
	var text strings.Builder
	l.at++
	for l.at < len(l.text) && l.text[l.at] != '"' {
		c := l.text[l.at]
		if c == '\\' && l.at+1 < len(l.text) && strings.IndexByte("\\\"$\n", l.text[l.at+1]) >= 0 {
			if l.text[l.at+1] != '\n' {
				text.WriteByte(l.text[l.at+1])
			}
			l.at += 2
			continue
		}
		if c == '$' {
			if name := l.variable(); name != "" {
				w = append(w, fragment{text: text.String(), quoted: true}, fragment{text: name, variable: true, quoted: true})
				text.Reset()
				continue
			}
			text.WriteByte('$')
			continue
		}
		text.WriteByte(c)
		l.at++
	}
	l.at = min(l.at+1, len(l.text))
	return append(w, fragment{text: text.String(), quoted: true})
}

// variable takes $name or ${name} and returns the name; the $ alone, and "",
// where there is none.
func (l *lexer) variable() string {
	l.at++
	rest := l.text[l.at:]
	if strings.HasPrefix(rest, "{") {
		if end := strings.IndexAny(rest, "}\n"); end > 1 && rest[end] == '}' {
			l.at += end + 1
			return rest[1:end]
		}
		return ""
	}
	n := 0
	for n < len(rest) && (rest[n] == '_' || rest[n] >= 'a' && rest[n] <= 'z' || rest[n] >= 'A' && rest[n] <= 'Z' || rest[n] >= '0' && rest[n] <= '9') {
		n++
	}
	if n == 0 && rest != "" && strings.IndexByte("?@#*", rest[0]) >= 0 {
		n = 1
	}
	l.at += n
	return rest[:n]
}

// statement is a command with its words and perhaps a block, or a condition with
// its arms.
type statement struct {
	words []word
	block []statement
	arms  []arm
}

// arm is one branch of an if; of an else, cond is nil.
type arm struct {
	cond, body []statement
}

// parser makes statements of tokens.
type parser struct {
	lex   lexer
	depth int
}

func parseScript(text string) ([]statement, error) {
	p := parser{lex: lexer{text: text}}
	out, end, err := p.list()
	if err == nil && end != "" {
		err = fmt.Errorf("line %d: %s, and nothing that it ends", p.line(), end)
	}
	return out, err
}

func (p *parser) line() int { return 1 + strings.Count(p.lex.text[:p.lex.at], "\n") }

// list parses statements up to a word that ends them, which it returns: }, then,
// elif, else, fi, do, done; "" at the script's end.
func (p *parser) list() (out []statement, end string, err error) {
	const maxDepth = 64
	if p.depth++; p.depth > maxDepth {
		return nil, "", fmt.Errorf("%w: line %d: more than %d blocks in each other", ErrTooLarge, p.line(), maxDepth)
	}
	defer func() { p.depth-- }()
	for {
		t, ok := p.lex.next()
		if !ok {
			return out, "", nil
		}
		switch first := t.word.literal(); {
		case t.mark == ';':
		case t.mark == '}':
			return out, "}", nil
		case t.mark == '{':
			return nil, "", fmt.Errorf("line %d: a { without a command", p.line())
		case first == "then", first == "elif", first == "else", first == "fi", first == "do", first == "done":
			return out, first, nil
		case first == "if":
			s, err := p.condition()
			if err != nil {
				return nil, "", err
			}
			out = append(out, s)
		case first == "while", first == "until", first == "for":
			if err := p.loop(); err != nil {
				return nil, "", err
			}
		default:
			s, err := p.command(t.word)
			if err != nil {
				return nil, "", err
			}
			// What a function would do has nothing to do with what is booted.
			if first != "function" {
				out = append(out, s)
			}
		}
	}
}

func (p *parser) command(first word) (statement, error) {
	s := statement{words: []word{first}}
	for {
		before := p.lex.at
		t, ok := p.lex.next()
		switch {
		case !ok || t.mark == ';':
			return s, nil
		case t.mark == '}': // the end of the block around
			p.lex.at = before
			return s, nil
		case t.mark == '{':
			block, end, err := p.list()
			if err == nil && end != "}" {
				err = fmt.Errorf("line %d: a block without its }", p.line())
			}
			if err != nil {
				return s, err
			}
			s.block = block
		default:
			s.words = append(s.words, t.word)
		}
	}
}

// condition parses what follows an if, up to its fi.
func (p *parser) condition() (s statement, err error) {
	for end := "elif"; end != "fi"; {
		var a arm
		if end == "elif" {
			a.cond, end, err = p.list()
			if err == nil && end != "then" {
				err = fmt.Errorf("line %d: an if without its then", p.line())
			}
			if err != nil {
				return s, err
			}
		}
		a.body, end, err = p.list()
		if err == nil && end != "elif" && end != "else" && end != "fi" {
			err = fmt.Errorf("line %d: an if without its fi", p.line())
		}
		if err != nil {
			return s, err
		}
		s.arms = append(s.arms, a)
	}
	return s, nil
}

// loop passes over a loop: grub-mkconfig writes none.
func (p *parser) loop() error {
	for _, want := range []string{"do", "done"} {
		if _, end, err := p.list(); err != nil || end != want {
			return errorOr(err, fmt.Errorf("line %d: a loop without its %s", p.line(), want))
		}
	}
	return nil
}

func errorOr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}
