//! Tokens into expressions: a Pratt parser over the contract's precedence table.
//!
//! Everything the language has is understood here, also forms that [`super::check`] refuses, so
//! that their errors say what is missing rather than that a token is unexpected. Lists are read
//! in a loop and connectives kept flat; nesting and tree height are bounded ([`MAX_DEPTH`]).

use logos::{Lexer, Logos};

use super::FilterError;
use super::ast::{Arg, Binary, Cmp, Connective, Expr, Kind, List, Path, Step};
use super::lex::{self, Number, Span, Token};

/// Deepest nesting, and greatest height of the tree. Tests go to this depth on a stack of 1 MiB,
/// half of what a worker thread has.
pub(super) const MAX_DEPTH: u16 = 1_000;

/// Most elements of a list of other things than integers or strings alone, which cost 20 × as
/// much memory as their text.
const MAX_MIXED_LIST: usize = 1 << 20;

/// Most brackets after one name; JSON itself is limited to 128 levels.
const MAX_STEPS: usize = 128;

/// How tightly operators bind, loosest first.
mod power {
    pub(super) const OR: u8 = 1;
    pub(super) const AND: u8 = 2;
    pub(super) const BIT_OR: u8 = 3;
    pub(super) const BIT_XOR: u8 = 4;
    pub(super) const BIT_AND: u8 = 5;
    pub(super) const EQUALITY: u8 = 6;
    pub(super) const RELATION: u8 = 7;
    pub(super) const IN: u8 = 8;
    pub(super) const SHIFT: u8 = 9;
    pub(super) const SUM: u8 = 10;
    pub(super) const PRODUCT: u8 = 11;
    pub(super) const UNARY: u8 = 12;
    pub(super) const POWER: u8 = 13;
    pub(super) const MATCHES: u8 = 14;
    pub(super) const LIKE: u8 = 15;
    pub(super) const EXISTS: u8 = 16;
}

/// Parses a whole filter.
///
/// # Errors
/// [`FilterError`] at the first token that does not fit.
pub(super) fn parse(text: &str) -> Result<Expr, FilterError> {
    if u32::try_from(text.len()).is_err() {
        return Err(FilterError { span: 0..0, message: "the filter is longer than 4 GiB".into() });
    }
    let mut parser = Parser::new(text);
    let expr = parser.expr(0)?;
    match parser.token {
        Token::End => Ok(expr),
        _ => Err(parser.unexpected("an operator or the end")),
    }
}

struct Parser<'t> {
    text: &'t str,
    lexer: Lexer<'t, Token>,
    token: Token,
    span: Span,
    /// The token after `token`, and its place.
    next: (Token, Span),
    /// Where the token before `token` ended.
    end: u32,
    depth: u16,
}

impl<'t> Parser<'t> {
    fn new(text: &'t str) -> Self {
        let start = (Token::End, Span::default());
        let mut parser = Self {
            text,
            lexer: Token::lexer(text),
            token: start.0,
            span: start.1,
            next: start,
            end: 0,
            depth: 0,
        };
        parser.advance();
        parser.advance();
        parser.end = 0;
        parser
    }

    fn advance(&mut self) {
        self.end = self.span.end;
        (self.token, self.span) = self.next;
        let token = match self.lexer.next() {
            Some(Ok(token)) => token,
            Some(Err(())) => Token::Unknown,
            None => Token::End,
        };
        let range = self.lexer.span();
        let place = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        self.next = (token, Span { start: place(range.start), end: place(range.end) });
    }

    fn slice(&self) -> &'t str {
        &self.text[self.span.range()]
    }

    fn take(&mut self, token: Token) -> bool {
        let found = self.token == token;
        if found {
            self.advance();
        }
        found
    }

    fn expect(&mut self, token: Token, what: &str) -> Result<(), FilterError> {
        if self.take(token) { Ok(()) } else { Err(self.unexpected(what)) }
    }

    /// From `start` to the end of the last token taken.
    fn since(&self, start: Span) -> Span {
        Span { start: start.start, end: self.end.max(start.end) }
    }

    fn unexpected(&self, wanted: &str) -> FilterError {
        let message = match self.token {
            Token::End => format!("expected {wanted}, but the expression ends"),
            Token::Unknown if self.slice().starts_with(['"', '\'']) => {
                "a string begins here and does not end".to_owned()
            }
            Token::BadNumber => format!("`{}` is not a number", shorten(self.slice())),
            _ => format!("expected {wanted}, found `{}`", shorten(self.slice())),
        };
        FilterError { span: self.span.range(), message }
    }

    /// Parses as long as operators bind at least as tightly as `min`.
    fn expr(&mut self, min: u8) -> Result<Expr, FilterError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(too_deep(self.span));
        }
        let mut left = self.prefix()?;
        // A comparison made in this loop, hence without parentheses, can become a range.
        let mut open_comparison = false;
        while let Some(infix) = self.infix().filter(|infix| infix.power() >= min) {
            let chained = open_comparison && matches!(infix, Infix::Relation(_));
            left = self.operator(left, infix, chained)?;
            open_comparison = matches!(infix, Infix::Relation(_)) && !chained;
        }
        self.depth -= 1;
        Ok(left)
    }

    fn infix(&self) -> Option<Infix> {
        Some(match self.token {
            Token::Or => Infix::Logic(Connective::Or),
            Token::And => Infix::Logic(Connective::And),
            Token::BitOr => Infix::Binary(Binary::Or),
            Token::BitXor => Infix::Binary(Binary::Xor),
            Token::BitAnd => Infix::Binary(Binary::And),
            Token::Equal => Infix::Equality(Cmp::Equal),
            Token::NotEqual => Infix::Equality(Cmp::NotEqual),
            Token::Less => Infix::Relation(Cmp::Less),
            Token::LessEqual => Infix::Relation(Cmp::LessEqual),
            Token::Greater => Infix::Relation(Cmp::Greater),
            Token::GreaterEqual => Infix::Relation(Cmp::GreaterEqual),
            Token::In => Infix::In { negated: false },
            Token::Not if self.next.0 == Token::In => Infix::In { negated: true },
            Token::ShiftLeft => Infix::Binary(Binary::ShiftLeft),
            Token::ShiftRight => Infix::Binary(Binary::ShiftRight),
            Token::Plus => Infix::Binary(Binary::Add),
            Token::Minus => Infix::Binary(Binary::Subtract),
            Token::Star => Infix::Binary(Binary::Multiply),
            Token::Slash => Infix::Binary(Binary::Divide),
            Token::Percent => Infix::Binary(Binary::Remainder),
            Token::Power => Infix::Binary(Binary::Power),
            Token::Matches => Infix::Matches { negated: false },
            Token::MatchesNot => Infix::Matches { negated: true },
            Token::Like => Infix::Like,
            _ => return None,
        })
    }

    #[inline(never)]
    fn operator(&mut self, left: Expr, infix: Infix, chained: bool) -> Result<Expr, FilterError> {
        let place = self.span;
        self.advance();
        let right = infix.power() + 1;
        let kind = match infix {
            Infix::Logic(connective) => {
                let term = self.expr(right)?;
                return logic(connective, left, term);
            }
            Infix::Binary(op) => {
                Kind::Binary { op, left: Box::new(left), right: Box::new(self.expr(right)?) }
            }
            Infix::Relation(op) if chained => self.range(left, op, place)?,
            Infix::Equality(op) | Infix::Relation(op) => {
                Kind::Compare { op, left: Box::new(left), right: Box::new(self.expr(right)?) }
            }
            Infix::In { negated } => {
                if negated {
                    self.advance();
                }
                if !matches!(self.token, Token::OpenList | Token::OpenBrace) {
                    return Err(self.unexpected("a list `[..]` or a template `{name}` after `in`"));
                }
                let list = Box::new(self.prefix()?);
                Kind::In { value: Box::new(left), list, negated }
            }
            Infix::Like => Kind::Like { value: Box::new(left), pattern: self.pattern("like")? },
            Infix::Matches { negated } => {
                Kind::Matches { value: Box::new(left), pattern: self.pattern("=~")?, negated }
            }
        };
        let start = match &kind {
            Kind::Compare { left, .. } | Kind::Binary { left, .. } => left.span,
            Kind::Range { low, .. } => low.span,
            Kind::In { value, .. } | Kind::Like { value, .. } | Kind::Matches { value, .. } => {
                value.span
            }
            _ => place,
        };
        node(kind, self.since(start))
    }

    /// `left` is a comparison, and another one follows it.
    fn range(&mut self, left: Expr, high_op: Cmp, place: Span) -> Result<Kind, FilterError> {
        let Kind::Compare { op: low_op, left: low, right: value } = left.kind else {
            return Err(fail(place, "expected a comparison before this one"));
        };
        if low_op.is_less() != high_op.is_less() {
            return Err(fail(
                place,
                "both comparisons of a range must point the same way, as in `1 < a <= 5`",
            ));
        }
        let high = Box::new(self.expr(power::RELATION + 1)?);
        Ok(Kind::Range { low, low_op, value, high_op, high })
    }

    fn pattern(&mut self, operator: &str) -> Result<Box<Expr>, FilterError> {
        match self.token {
            Token::Text | Token::RawText | Token::OpenBrace => Ok(Box::new(self.prefix()?)),
            _ => {
                Err(self
                    .unexpected(&format!("a string or a template `{{name}}` after `{operator}`")))
            }
        }
    }

    #[inline(never)]
    fn prefix(&mut self) -> Result<Expr, FilterError> {
        let start = self.span;
        let token = self.token;
        let unary = |parser: &mut Self, power| {
            parser.advance();
            parser.expr(power).map(Box::new)
        };
        let kind = match token {
            // Binds more loosely than in Milvus, which reads `not a > 5` as `(not a) > 5` and
            // refuses it; where both are legal they mean the same.
            Token::Not | Token::Bang => Kind::Not(unary(self, power::EQUALITY)?),
            Token::Minus => Kind::Negate(unary(self, power::UNARY)?),
            Token::Tilde => Kind::Complement(unary(self, power::UNARY)?),
            Token::Exists => Kind::Exists(unary(self, power::EXISTS)?),
            Token::Plus => {
                self.advance();
                return self.expr(power::UNARY);
            }
            Token::Open => {
                self.advance();
                let mut inner = self.expr(0)?;
                self.expect(Token::Close, "`)`")?;
                inner.span = self.since(start);
                return self.postfix(inner);
            }
            Token::True | Token::False => {
                self.advance();
                Kind::Bool(token == Token::True)
            }
            Token::Number => {
                let number = lex::number(self.slice()).map_err(|why| fail(start, why))?;
                self.advance();
                match number {
                    Number::Int(value) => Kind::Int(value),
                    Number::Float(value) => Kind::Float(value),
                }
            }
            Token::Text | Token::RawText => Kind::Text(self.string()?),
            Token::OpenList => Kind::List(self.list()?),
            Token::OpenBrace => Kind::Template(self.template()?),
            Token::Name => {
                let named = self.named()?;
                return self.postfix(node(named, self.since(start))?);
            }
            _ => return Err(self.unexpected("a value, a field or `(`")),
        };
        node(kind, self.since(start))
    }

    /// `is null`, `is not null`.
    fn postfix(&mut self, value: Expr) -> Result<Expr, FilterError> {
        if !self.take(Token::Is) {
            return Ok(value);
        }
        let negated = self.take(Token::Not);
        self.expect(Token::Null, "`null` or `not null` after `is`")?;
        let span = self.since(value.span);
        node(Kind::IsNull { value: Box::new(value), negated }, span)
    }

    fn string(&mut self) -> Result<String, FilterError> {
        let slice = self.slice();
        let text = if self.token == Token::RawText {
            slice[2..slice.len() - 1].to_owned()
        } else {
            lex::string(slice).map_err(|why| fail(self.span, why))?
        };
        self.advance();
        Ok(text)
    }

    fn template(&mut self) -> Result<String, FilterError> {
        self.advance();
        let name = self.slice().to_owned();
        self.expect(Token::Name, "the name of a template variable")?;
        self.expect(Token::CloseBrace, "`}`")?;
        Ok(name)
    }

    /// A field with its brackets, a call, or a temporal literal.
    fn named(&mut self) -> Result<Kind, FilterError> {
        let name = self.slice().to_owned();
        self.advance();
        match self.token {
            Token::Open => return Ok(Kind::Call { name, args: self.args()? }),
            Token::Text if matches!(name.as_str(), "interval" | "INTERVAL" | "iso" | "ISO") => {
                return Ok(Kind::Temporal { name, text: self.string()? });
            }
            _ => {}
        }
        let mut steps = Vec::new();
        while self.token == Token::OpenList {
            self.advance();
            let step = match self.token {
                Token::Text | Token::RawText => Step::Key(self.string()?),
                Token::Name => {
                    let member = self.slice().to_owned();
                    self.advance();
                    Step::Member(member)
                }
                Token::Number => {
                    let index = match lex::number(self.slice()) {
                        Ok(Number::Int(index)) => usize::try_from(index).ok(),
                        Ok(Number::Float(_)) | Err(_) => None,
                    };
                    let index = index.ok_or_else(|| self.unexpected("a key or an index"))?;
                    self.advance();
                    Step::Index(index)
                }
                _ => return Err(self.unexpected("a key like [\"a\"] or an index like [0]")),
            };
            if steps.len() == MAX_STEPS {
                return Err(fail(self.span, format!("a path has at most {MAX_STEPS} brackets")));
            }
            steps.push(step);
            self.expect(Token::CloseList, "`]`")?;
        }
        Ok(Kind::Path(Path { name, steps }))
    }

    fn args(&mut self) -> Result<Vec<Arg>, FilterError> {
        self.advance();
        let mut args = Vec::new();
        while !self.take(Token::Close) {
            let name = if self.token == Token::Name && self.next.0 == Token::Assign {
                let name = self.slice().to_owned();
                self.advance();
                self.advance();
                Some(name)
            } else {
                None
            };
            args.push(Arg { name, value: self.expr(0)? });
            if !self.take(Token::Comma) && self.token != Token::Close {
                return Err(self.unexpected("`,` or `)`"));
            }
        }
        Ok(args)
    }

    fn list(&mut self) -> Result<List, FilterError> {
        self.advance();
        let mut list = List::Ints(Vec::new());
        while !self.take(Token::CloseList) {
            let start = self.span;
            if let Some(element) = self.plain_int() {
                match &mut list {
                    List::Ints(ints) => ints.push(element),
                    List::Texts(_) | List::Mixed(_) => {
                        push_mixed(&mut list, int_expr(element, start), start)?;
                    }
                }
            } else if matches!(self.token, Token::Text | Token::RawText) && self.at_element_end() {
                let text = self.string()?;
                match &mut list {
                    List::Ints(ints) if ints.is_empty() => list = List::Texts(vec![text]),
                    List::Texts(texts) => texts.push(text),
                    List::Ints(_) | List::Mixed(_) => {
                        push_mixed(&mut list, node(Kind::Text(text), start)?, start)?;
                    }
                }
            } else {
                let element = self.expr(0)?;
                push_mixed(&mut list, element, start)?;
            }
            if !self.take(Token::Comma) && self.token != Token::CloseList {
                return Err(self.unexpected("`,` or `]`"));
            }
        }
        Ok(list)
    }

    /// Whether the current token is a whole element.
    fn at_element_end(&self) -> bool {
        matches!(self.next.0, Token::Comma | Token::CloseList)
    }

    /// Takes an element that is an integer of 64 bits, with or without a minus, and nothing else.
    fn plain_int(&mut self) -> Option<i64> {
        if self.token == Token::Minus && self.next.0 == Token::Number {
            // The token after the number is not in sight, so look at the text.
            let after = self.text[self.next.1.range().end..].trim_start();
            let Ok(Number::Int(value)) = lex::number(&self.text[self.next.1.range()]) else {
                return None;
            };
            let value = i64::try_from(-i128::from(value)).ok()?;
            if !after.starts_with([',', ']']) {
                return None;
            }
            self.advance();
            self.advance();
            return Some(value);
        }
        if self.token != Token::Number || !self.at_element_end() {
            return None;
        }
        let Ok(Number::Int(value)) = lex::number(self.slice()) else { return None };
        let value = i64::try_from(value).ok()?;
        self.advance();
        Some(value)
    }
}

#[derive(Clone, Copy)]
enum Infix {
    Logic(Connective),
    Binary(Binary),
    Equality(Cmp),
    Relation(Cmp),
    In { negated: bool },
    Like,
    Matches { negated: bool },
}

impl Infix {
    fn power(self) -> u8 {
        match self {
            Self::Logic(Connective::Or) => power::OR,
            Self::Logic(Connective::And) => power::AND,
            Self::Binary(Binary::Or) => power::BIT_OR,
            Self::Binary(Binary::Xor) => power::BIT_XOR,
            Self::Binary(Binary::And) => power::BIT_AND,
            Self::Equality(_) => power::EQUALITY,
            Self::Relation(_) => power::RELATION,
            Self::In { .. } => power::IN,
            Self::Binary(Binary::ShiftLeft | Binary::ShiftRight) => power::SHIFT,
            Self::Binary(Binary::Add | Binary::Subtract) => power::SUM,
            Self::Binary(Binary::Multiply | Binary::Divide | Binary::Remainder) => power::PRODUCT,
            Self::Binary(Binary::Power) => power::POWER,
            Self::Matches { .. } => power::MATCHES,
            Self::Like => power::LIKE,
        }
    }
}

/// Joins two terms, keeping runs of one connective flat. The height comes from the two sides, not
/// from all terms again, so that a run of n terms costs n steps.
fn logic(connective: Connective, left: Expr, right: Expr) -> Result<Expr, FilterError> {
    let span = left.span.to(right.span);
    let mut height = 0;
    let mut terms = Vec::new();
    for side in [left, right] {
        match side.kind {
            Kind::Logic { connective: same, terms: inner } if same == connective => {
                height = height.max(side.height);
                if terms.is_empty() {
                    terms = inner;
                } else {
                    terms.extend(inner);
                }
            }
            kind => {
                height = height.max(side.height + 1);
                terms.push(Expr { kind, ..side });
            }
        }
    }
    if height > MAX_DEPTH {
        return Err(too_deep(span));
    }
    Ok(Expr { kind: Kind::Logic { connective, terms }, span, height })
}

/// Makes a node and measures its height.
fn node(kind: Kind, span: Span) -> Result<Expr, FilterError> {
    let below = match &kind {
        Kind::Bool(_)
        | Kind::Int(_)
        | Kind::Float(_)
        | Kind::Text(_)
        | Kind::Template(_)
        | Kind::Path(_)
        | Kind::Temporal { .. }
        | Kind::List(List::Ints(_) | List::Texts(_)) => 0,
        Kind::Not(inner) | Kind::Negate(inner) | Kind::Complement(inner) | Kind::Exists(inner) => {
            inner.height
        }
        Kind::IsNull { value, .. } => value.height,
        Kind::Compare { left, right, .. } | Kind::Binary { left, right, .. } => {
            left.height.max(right.height)
        }
        Kind::In { value: left, list: right, .. }
        | Kind::Like { value: left, pattern: right }
        | Kind::Matches { value: left, pattern: right, .. } => left.height.max(right.height),
        Kind::Range { low, value, high, .. } => low.height.max(value.height).max(high.height),
        Kind::Logic { terms, .. } | Kind::List(List::Mixed(terms)) => {
            terms.iter().map(|term| term.height).max().unwrap_or(0)
        }
        Kind::Call { args, .. } => args.iter().map(|arg| arg.value.height).max().unwrap_or(0),
    };
    if below >= MAX_DEPTH {
        return Err(too_deep(span));
    }
    Ok(Expr { kind, span, height: below + 1 })
}

fn int_expr(value: i64, span: Span) -> Expr {
    let magnitude = Expr { kind: Kind::Int(value.unsigned_abs()), span, height: 1 };
    if value < 0 {
        Expr { kind: Kind::Negate(Box::new(magnitude)), span, height: 2 }
    } else {
        magnitude
    }
}

/// Adds an element that does not fit the packed forms.
fn push_mixed(list: &mut List, element: Expr, span: Span) -> Result<(), FilterError> {
    if !matches!(list, List::Mixed(_)) {
        let plain = std::mem::replace(list, List::Mixed(Vec::new()));
        *list = List::Mixed(match plain {
            List::Ints(ints) => ints.into_iter().map(|value| int_expr(value, span)).collect(),
            List::Texts(texts) => texts
                .into_iter()
                .map(|text| Expr { kind: Kind::Text(text), span, height: 1 })
                .collect(),
            List::Mixed(elements) => elements,
        });
    }
    if let List::Mixed(elements) = list {
        if elements.len() >= MAX_MIXED_LIST {
            return Err(fail(
                span,
                format!(
                    "a list of more than {MAX_MIXED_LIST} elements must hold integers only or \
                     strings only; or pass it as a template variable"
                ),
            ));
        }
        elements.push(element);
    }
    Ok(())
}

pub(super) fn fail(span: Span, message: impl Into<String>) -> FilterError {
    FilterError { span: span.range(), message: message.into() }
}

fn too_deep(span: Span) -> FilterError {
    fail(span, format!("the expression is nested more than {MAX_DEPTH} levels deep"))
}

/// The beginning of a token, for a message.
fn shorten(token: &str) -> String {
    match token.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &token[..end]),
        None => token.to_owned(),
    }
}
