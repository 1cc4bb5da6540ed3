//! Expressions of the Go subset: fields, texts, `eq ne and or not`, parentheses; written as Jinja.

use super::TEMPLATE_DEPTH_MAX;

/// What the dot means.
#[derive(Clone, Copy)]
pub(super) struct Scope {
    /// The template describes one turn.
    pub is_turn: bool,
    /// Within `range .Messages`, where the dot is a message.
    pub in_range: bool,
}

/// Translates an expression; the error says what is wrong with it.
pub(super) fn translate(source: &str, scope: Scope) -> Result<String, String> {
    let tokens = tokens(source)?;
    let mut reader = Reader { tokens: &tokens, at: 0, scope };
    let translated = reader.pipeline(0)?;
    match reader.next() {
        None => Ok(translated),
        Some(_) => Err("isn't supported".into()),
    }
}

/// Whether `.Response` stands in the expression, outside texts.
pub(super) fn mentions_response(source: &str) -> bool {
    tokens(source)
        .is_ok_and(|tokens| tokens.iter().any(|token| matches!(token, Token::Word(".Response" | "$.Response"))))
}

/// Writes a text as a literal of Jinja, without anything that looks like one of its tags.
pub(super) fn literal(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('{', "\\u007b").replace('}', "\\u007d")
}

enum Token<'a> {
    Open,
    Close,
    Word(&'a str),
    Text(String),
}

fn tokens(source: &str) -> Result<Vec<Token<'_>>, String> {
    let mut tokens = Vec::new();
    let mut rest = source.trim_start();
    while let Some(first) = rest.chars().next() {
        let len = match first {
            '(' => {
                tokens.push(Token::Open);
                1
            }
            ')' => {
                tokens.push(Token::Close);
                1
            }
            '"' => {
                let len = text_len(rest).ok_or("has a text that is never closed")?;
                // Go's escapes that JSON doesn't know are refused, not guessed.
                let text = serde_json::from_str(&rest[..len]).map_err(|_| "has an escape that isn't supported")?;
                tokens.push(Token::Text(text));
                len
            }
            '`' => {
                let len = rest[1..].find('`').ok_or("has a text that is never closed")? + 2;
                tokens.push(Token::Text(rest[1..len - 1].to_owned()));
                len
            }
            _ => {
                let len = rest.find(|char: char| char.is_whitespace() || "()\"`".contains(char)).unwrap_or(rest.len());
                tokens.push(Token::Word(&rest[..len]));
                len
            }
        };
        rest = rest[len..].trim_start();
    }
    Ok(tokens)
}

/// How many bytes a text between `"` has, with its quotes.
fn text_len(source: &str) -> Option<usize> {
    let mut escaped = false;
    source.bytes().enumerate().skip(1).find_map(|(idx, byte)| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes.then_some(idx + 1)
    })
}

struct Reader<'a> {
    tokens: &'a [Token<'a>],
    at: usize,
    scope: Scope,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<&'a Token<'a>> {
        let token = self.tokens.get(self.at)?;
        self.at += 1;
        Some(token)
    }

    /// Whether an operand can follow.
    fn has_operand(&self) -> bool {
        !matches!(self.tokens.get(self.at), None | Some(Token::Close))
    }

    /// A function with its operands, or one operand.
    fn pipeline(&mut self, depth: usize) -> Result<String, String> {
        let Some(Token::Word(word @ ("eq" | "ne" | "and" | "or" | "not"))) = self.tokens.get(self.at) else {
            return self.operand(depth);
        };
        self.at += 1;
        let mut operands = Vec::new();
        while self.has_operand() {
            operands.push(self.operand(depth)?);
        }
        match (*word, operands.as_slice()) {
            ("not", [only]) => Ok(format!("(not {only})")),
            ("eq", [left, right]) => Ok(format!("({left} == {right})")),
            ("eq", [left, rights @ ..]) if rights.len() > 1 => Ok(format!("({left} in [{}])", rights.join(", "))),
            ("ne", [left, right]) => Ok(format!("({left} != {right})")),
            (word @ ("and" | "or"), [_, ..]) => Ok(format!("({})", operands.join(&format!(" {word} ")))),
            (word, operands) => Err(format!("gives `{word}` {} operands", operands.len())),
        }
    }

    fn operand(&mut self, depth: usize) -> Result<String, String> {
        if depth >= TEMPLATE_DEPTH_MAX {
            return Err("is nested too deep".into());
        }
        match self.next() {
            Some(Token::Text(text)) => Ok(literal(text)),
            Some(Token::Word(word)) => self.field(word),
            Some(Token::Open) => {
                let inner = self.pipeline(depth + 1)?;
                match self.next() {
                    Some(Token::Close) => Ok(inner),
                    _ => Err("has a parenthesis that is never closed".into()),
                }
            }
            Some(Token::Close) => Err("closes a parenthesis that isn't open".into()),
            None => Err("has nothing in it".into()),
        }
    }

    fn field(&self, word: &str) -> Result<String, String> {
        let from_root = word.strip_prefix('$');
        let in_range = self.scope.in_range && from_root.is_none();
        Ok(match (from_root.unwrap_or(word), in_range) {
            (".Role", true) => "at.role",
            (".Content", true) => "at.content",
            (".System", false) => "System",
            (".Prompt", false) => "Prompt",
            (".Response", false) => "Response",
            (".Messages", false) => "messages",
            (".System" | ".Prompt" | ".Response" | ".Messages", true) => {
                return Err(format!("has `{word}` within `range`, where it is `${word}`"));
            }
            _ => return Err("isn't supported".into()),
        }
        .to_owned())
    }
}
