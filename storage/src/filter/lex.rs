//! Characters into tokens, and token text into values.
//!
//! A token is only its kind and place; what a literal means is decoded by [`number`] and
//! [`string`] when the parser asks. Keywords are written all lower or all upper case.

use logos::Logos;

/// Byte range in the filter's text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) end: u32,
}

impl Span {
    /// From the start of `self` to the end of `other`.
    pub(super) fn to(self, other: Self) -> Self {
        Self { start: self.start, end: other.end }
    }

    pub(super) fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// The kinds of tokens.
#[derive(Logos, Clone, Copy, Debug, PartialEq, Eq)]
#[logos(skip r"[ \t\r\n\f]+")]
pub(super) enum Token {
    #[token("and")]
    #[token("AND")]
    #[token("&&")]
    And,
    #[token("or")]
    #[token("OR")]
    #[token("||")]
    Or,
    #[token("not")]
    #[token("NOT")]
    Not,
    #[token("!")]
    Bang,
    #[token("in")]
    #[token("IN")]
    In,
    #[token("like")]
    #[token("LIKE")]
    Like,
    #[token("is")]
    #[token("IS")]
    Is,
    #[token("null")]
    #[token("NULL")]
    Null,
    #[token("exists")]
    #[token("EXISTS")]
    Exists,
    #[token("true")]
    #[token("True")]
    #[token("TRUE")]
    True,
    #[token("false")]
    #[token("False")]
    #[token("FALSE")]
    False,
    #[token("==")]
    Equal,
    #[token("!=")]
    NotEqual,
    #[token("<")]
    Less,
    #[token("<=")]
    LessEqual,
    #[token(">")]
    Greater,
    #[token(">=")]
    GreaterEqual,
    #[token("=~")]
    Matches,
    #[token("!~")]
    MatchesNot,
    #[token("=")]
    Assign,
    #[token("+")]
    Plus,
    #[token("-")]
    Minus,
    #[token("*")]
    Star,
    #[token("**")]
    Power,
    #[token("/")]
    Slash,
    #[token("%")]
    Percent,
    #[token("<<")]
    ShiftLeft,
    #[token(">>")]
    ShiftRight,
    #[token("&")]
    BitAnd,
    #[token("^")]
    BitXor,
    #[token("|")]
    BitOr,
    #[token("~")]
    Tilde,
    #[token("(")]
    Open,
    #[token(")")]
    Close,
    #[token("[")]
    OpenList,
    #[token("]")]
    CloseList,
    #[token("{")]
    OpenBrace,
    #[token("}")]
    CloseBrace,
    #[token(",")]
    Comma,
    /// A field, a dynamic key, a function's name, `$meta`, or `$` of element filters.
    #[regex(r"[A-Za-z_][A-Za-z0-9_]*")]
    #[regex(r"\$[A-Za-z_]*")]
    Name,
    #[regex(r"0[xX][0-9a-fA-F]*(\.[0-9a-fA-F]*)?([pP][+-]?[0-9]+)?", priority = 20)]
    #[regex(r"0[bB][01]+", priority = 20)]
    #[regex(r"[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?", priority = 20)]
    #[regex(r"\.[0-9]+([eE][+-]?[0-9]+)?", priority = 20)]
    Number,
    /// Something that begins as a number and goes on otherwise, such as `12abc`.
    #[regex(r"[0-9][0-9A-Za-z_.]*", priority = 1)]
    BadNumber,
    #[regex(r#""([^"\\]|\\[^\n]|\\\n)*""#)]
    #[regex(r"'([^'\\]|\\[^\n]|\\\n)*'")]
    Text,
    #[regex(r#"[rR]"[^"]*""#, priority = 20)]
    #[regex(r"[rR]'[^']*'", priority = 20)]
    RawText,
    /// No token begins here; made by the parser from the lexer's error.
    Unknown,
    /// After the last token; made by the parser.
    End,
}

/// A decoded number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Int(u64),
    Float(f64),
}

/// Decodes the text of a [`Token::Number`]: decimal, hexadecimal (`0x`), octal (leading `0`) and
/// binary (`0b`) integers; decimal and hexadecimal floats.
///
/// # Errors
/// The reason, if the number is malformed or too large.
pub(super) fn number(text: &str) -> Result<Number, String> {
    let radix = |digits: &str, radix: u32| {
        u64::from_str_radix(digits, radix)
            .map(Number::Int)
            .map_err(|_| format!("`{text}` is not an integer of at most 64 bits"))
    };
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return if hex.contains(['.', 'p', 'P']) { hex_float(text, hex) } else { radix(hex, 16) };
    }
    if let Some(binary) = text.strip_prefix("0b").or_else(|| text.strip_prefix("0B")) {
        return radix(binary, 2);
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return match text.strip_prefix('0') {
            Some(octal) if !octal.is_empty() => u64::from_str_radix(octal, 8)
                .map(Number::Int)
                .map_err(|_| format!("`{text}` is not an octal integer of at most 64 bits")),
            _ => radix(text, 10),
        };
    }
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(Number::Float(value)),
        _ => Err(format!("`{text}` is not a double-precision number")),
    }
}

/// `hex` is the text after `0x`: hexadecimal digits with a point, and a binary exponent.
fn hex_float(text: &str, hex: &str) -> Result<Number, String> {
    let bad = || format!("`{text}` is not a hexadecimal number");
    let (digits, exponent) = match hex.split_once(['p', 'P']) {
        Some((digits, exponent)) => (digits, exponent.parse::<i64>().map_err(|_| bad())?),
        None => (hex, 0),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return Err(bad());
    }
    // 30 digits fill 120 of 128 bits, far past a double's 53; further digits only shift.
    let mut mantissa = 0_u128;
    let mut shift = exponent.saturating_sub(4 * i64::try_from(fraction.len()).unwrap_or(i64::MAX));
    for digit in whole.chars().chain(fraction.chars()) {
        if mantissa >> 120 == 0 {
            mantissa = mantissa << 4 | u128::from(digit.to_digit(16).ok_or_else(bad)?);
        } else {
            shift = shift.saturating_add(4);
        }
    }
    let shift = shift.clamp(-2_000, 2_000) as i32;
    // In two steps, since 2^-1074 × 2^k is exact where 2^(k-1074) may have left the range.
    let value = mantissa as f64 * 2_f64.powi(shift / 2) * 2_f64.powi(shift - shift / 2);
    if value.is_finite() { Ok(Number::Float(value)) } else { Err(bad()) }
}

/// Decodes a quoted string. The escapes `\%` and `\_` keep their backslash, since they mean
/// something to `like`.
///
/// # Errors
/// The reason, if an escape is unknown or the bytes it makes are not UTF-8.
pub(super) fn string(quoted: &str) -> Result<String, String> {
    let inner = &quoted[1..quoted.len() - 1];
    if !inner.contains('\\') {
        return Ok(inner.to_owned());
    }
    let mut out = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        rest = escape(&rest[at + 1..], &mut out)?;
    }
    out.extend_from_slice(rest.as_bytes());
    String::from_utf8(out).map_err(|_| "escapes in the string do not make valid UTF-8".to_owned())
}

/// Decodes one escape, given the text after its backslash, and returns what follows it.
fn escape<'t>(text: &'t str, out: &mut Vec<u8>) -> Result<&'t str, String> {
    let kind = text.chars().next().ok_or("a lone backslash ends the string")?;
    let rest = &text[kind.len_utf8()..];
    let simple = match kind {
        'n' => b'\n',
        't' => b'\t',
        'r' => b'\r',
        'a' => 7,
        'b' => 8,
        'f' => 12,
        'v' => 11,
        '\\' | '\'' | '"' | '?' => kind as u8,
        '%' | '_' => {
            out.extend_from_slice(&[b'\\', kind as u8]);
            return Ok(rest);
        }
        '0'..='7' => {
            let digits = text.bytes().take(3).take_while(|b| (b'0'..=b'7').contains(b)).count();
            let value = u32::from_str_radix(&text[..digits], 8).unwrap_or(u32::MAX);
            out.push(
                u8::try_from(value).map_err(|_| format!("`\\{}` is no byte", &text[..digits]))?,
            );
            return Ok(&text[digits..]);
        }
        'x' => {
            out.push(
                hex(rest, 2)
                    .and_then(|v| u8::try_from(v).ok())
                    .ok_or("`\\x` needs two hexadecimal digits")?,
            );
            return Ok(&rest[2..]);
        }
        'u' | 'U' => {
            let width = if kind == 'u' { 4 } else { 8 };
            let missing = || format!("`\\{kind}` needs {width} hexadecimal digits");
            let mut value = hex(rest, width).ok_or_else(missing)?;
            let mut used = width;
            // A surrogate pair, as JSON writes characters beyond the basic plane.
            if (0xd800..0xdc00).contains(&value)
                && let Some(low) = rest[width..].strip_prefix("\\u").and_then(|low| hex(low, 4))
                && (0xdc00..0xe000).contains(&low)
            {
                value = 0x1_0000 + ((value - 0xd800) << 10) + (low - 0xdc00);
                used += 6;
            }
            let char = char::from_u32(value)
                .ok_or_else(|| format!("`\\{kind}{}` is no character", &rest[..width]))?;
            out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
            return Ok(&rest[used..]);
        }
        other => return Err(format!("unknown escape `\\{other}` in the string")),
    };
    out.push(simple);
    Ok(rest)
}

/// The value of the first `width` characters, if all of them are hexadecimal digits.
fn hex(text: &str, width: usize) -> Option<u32> {
    let digits = text.get(..width)?;
    digits
        .bytes()
        .all(|byte| byte.is_ascii_hexdigit())
        .then(|| u32::from_str_radix(digits, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn int(text: &str) -> u64 {
        match number(text).unwrap() {
            Number::Int(value) => value,
            Number::Float(value) => panic!("{text} became the float {value}"),
        }
    }

    fn float(text: &str) -> f64 {
        match number(text).unwrap() {
            Number::Float(value) => value,
            Number::Int(value) => panic!("{text} became the integer {value}"),
        }
    }

    #[test]
    fn integers_come_in_four_bases() {
        assert_eq!(int("0"), 0);
        assert_eq!(int("10"), 10);
        assert_eq!(int("0x1F"), 31);
        assert_eq!(int("0X1f"), 31);
        assert_eq!(int("017"), 15);
        assert_eq!(int("0b101"), 5);
        assert_eq!(int("9223372036854775808"), 1 << 63);
        for bad in ["08", "18446744073709551616", "0x", "0x1ffffffffffffffff"] {
            assert!(number(bad).unwrap_err().contains(bad), "{bad}");
        }
    }

    #[test]
    fn floats_are_decimal_or_hexadecimal() {
        assert_eq!(float("1.5"), 1.5);
        assert_eq!(float(".5"), 0.5);
        assert_eq!(float("1."), 1.0);
        assert_eq!(float("1e3"), 1000.0);
        assert_eq!(float("1E-3"), 0.001);
        assert_eq!(float("0x1.8p1"), 3.0);
        assert_eq!(float("0x.8p0"), 0.5);
        assert_eq!(float("0x1p-1074"), 5e-324);
        assert_eq!(float("0x10000000000000000000000000000000000000p0"), 2_f64.powi(148));
        for bad in ["1e999", "0x1p99999", "0x.p1"] {
            assert!(number(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn strings_know_their_escapes() {
        assert_eq!(string(r#""a\n\t\\\'\"b""#).unwrap(), "a\n\t\\'\"b");
        assert_eq!(string(r"'\u4e2d\x41\101\0'").unwrap(), "中AA\0");
        assert_eq!(string(r"'\xe4\xb8\xad'").unwrap(), "中");
        assert_eq!(string(r"'\ud83d\ude00\U0001F600'").unwrap(), "😀😀");
        assert_eq!(string(r"'50\%\_'").unwrap(), r"50\%\_");
        for bad in [r"'\q'", r"'\u12'", r"'\xz'", r"'\xff'", r"'\777'", r"'\ud800'"] {
            assert!(string(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_longest_token_wins() {
        let kinds =
            |text| Token::lexer(text).map(|t| t.unwrap_or(Token::Unknown)).collect::<Vec<_>>();
        assert_eq!(kinds("not notx NOT Not"), [Token::Not, Token::Name, Token::Not, Token::Name]);
        assert_eq!(kinds("<<= **"), [Token::ShiftLeft, Token::Assign, Token::Power]);
        assert_eq!(kinds("12abc 1.2.3 1e-3"), [Token::BadNumber, Token::BadNumber, Token::Number]);
        assert_eq!(kinds(r#"r"\" R'x' "\"""#), [Token::RawText, Token::RawText, Token::Text]);
        assert_eq!(kinds("$meta $"), [Token::Name, Token::Name]);
        assert_eq!(kinds("1 \"open"), [Token::Number, Token::Unknown]);
    }

    proptest! {
        #[test]
        fn decoding_never_panics(text in "\\PC{0,40}") {
            let _ = number(&text);
            let _ = string(&format!("'{text}'"));
        }

        #[test]
        fn every_double_survives(value in any::<f64>().prop_filter("finite", |v| v.is_finite())) {
            let text = format!("{:?}", value.abs());
            prop_assert_eq!(number(&text).unwrap(), Number::Float(value.abs()));
        }
    }
}
